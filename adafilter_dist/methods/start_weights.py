"""Where weights started, for methods that compare with it in every step."""

from __future__ import annotations

from torch import Tensor, nn


class StartWeights(nn.Module):
    """The values that the given parameters have now; checkpoints hold them, once a run."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        # Tensors with names of this form are stored once a run, like frozen filters.
        self._names = [f"frozen_{number}" for number in range(len(parameters))]
        for name, parameter in zip(self._names, parameters, strict=True):
            self.register_buffer(name, parameter.detach().clone())

    def values(self) -> list[Tensor]:
        """In the order of the parameters."""
        return [self.get_buffer(name) for name in self._names]
