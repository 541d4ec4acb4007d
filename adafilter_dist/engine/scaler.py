"""The loss scale of fp16 where another than torch unscales the gradients."""

from __future__ import annotations

from typing import Any

_INIT, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000
_LARGEST = 3.4e38  # as torch keeps it in fp32


class LossScaler:
    """`torch.amp.GradScaler`'s rule without its arithmetic; their states are interchangeable.

    The scale is halved by a step with an overflow, and doubled after 2,000 steps without.
    """

    def __init__(self) -> None:
        self.scale = _INIT
        self._since = 0  # steps without an overflow

    def update(self, *, overflow: bool) -> None:
        """After a step."""
        if overflow:
            self.scale, self._since = self.scale * _BACKOFF, 0
            return
        self._since += 1
        if self._since == _INTERVAL:
            self._since = 0
            if self.scale * _GROWTH < _LARGEST:
                self.scale *= _GROWTH

    def state_dict(self) -> dict[str, Any]:
        """Under the names of `torch.amp.GradScaler`."""
        return {
            "scale": self.scale,
            "growth_factor": _GROWTH,
            "backoff_factor": _BACKOFF,
            "growth_interval": _INTERVAL,
            "_growth_tracker": self._since,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of either."""
        self.scale, self._since = float(state["scale"]), int(state["_growth_tracker"])
