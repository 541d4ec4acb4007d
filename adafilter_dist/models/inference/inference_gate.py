"""The recurrent gate for inference: the same decisions in fewer and smaller steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adafilter_dist.models.gating.gate import RecurrentGate
from adafilter_dist.models.inference.gate_cpu import Step, can_step, gate_step


class InferenceGate(RecurrentGate):
    """A copy of a gate that only decides: bits (N, C_out) as bool, no estimator, no statistics.

    For layers with few input channels, P_i is multiplied into the LSTM's input matrix if that gives
    fewer bytes to read. With overrides, the gates are what these return: bits, or any values in the
    gate's dtype. Observers see gates of the gate's dtype.
    """

    def __init__(self, source: RecurrentGate) -> None:
        shapes = [
            (name, _linear(into).in_features, _linear(out).out_features)
            for name, into, out in zip(source.names, source.inputs, source.outputs, strict=True)
        ]
        like = source.running_mean
        drawn = torch.Generator().manual_seed(0)  # not torch's own, which others draw from
        super().__init__(
            shapes,
            source.settings,
            features=None if source.picture is None else len(source.picture.feature_mean),
            generator=drawn,
            device=like.device,
            dtype=like.dtype,
        )
        self.load_state_dict(source.state_dict())
        self.requires_grad_(False)
        hidden = source.settings.hidden
        self._joined = [4 * n < n + 4 * hidden for _, n, _ in shapes]
        self.prepare()
        self._fixed: set[int] = set()
        self._last_deciding = len(shapes) - 1
        self.training = False

    def prepare(self) -> None:
        """Compute what is derived from the weights; call it again after loading others."""
        self._steps: dict[int, Step] = {}
        for index, joined in enumerate(self._joined):
            if joined:
                weight, bias = _join(_linear(self.inputs[index]), self.cell)
                self.register_buffer(f"joined_weight_{index}", weight, persistent=False)
                self.register_buffer(f"joined_bias_{index}", bias, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InferenceGate:
        # What was moved or cast may be other tensors.
        self._steps.clear()
        super()._apply(fn, recurse)
        return self

    def fix_gates(self, index: int, constant: Tensor) -> None:
        """Fix a layer's gates: int8 (C_out,), 1 tuned, 0 frozen, -1 decided for each image."""
        self.register_buffer(f"constant_{index}", constant.to(self.running_mean.device), False)
        if bool((constant >= 0).all()):
            self._fixed.add(index)
        free = [i for i in range(len(self.names)) if i not in self._fixed]
        self._last_deciding = max(free, default=-1)

    def reads_after(self, index: int) -> bool:
        """Whether the mean of some activation behind layer ``index`` is needed."""
        return index < self._last_deciding or bool(self.observers)

    def advance_state(self, index: int, x: Tensor) -> None:
        """Update the LSTM state for a layer whose gates are all fixed; later layers need it.

        After the last layer that decides, nothing is computed; nor where layers decide alone.
        """
        if index < self._last_deciding and self.settings.recurrent:
            self._guarded(index, x)

    def forward(self, index: int, x: Tensor) -> Tensor:
        """Bits (N, C_out) of layer ``index`` for its input x (N, C_in, H, W)."""
        logits = self._guarded(index, x, decide=True)
        assert logits is not None
        logits = self.with_picture(index, logits)
        gates = logits > 0
        if self.overrides:
            gates = gates.to(logits.dtype)
            for override in self.overrides:
                gates = override(index, gates)
        self.decisions.gates[index], self.decisions.logits[index] = gates, logits
        for observer in self.observers:
            used = gates.to(logits.dtype)
            constant = getattr(self, f"constant_{index}", None)
            if constant is not None:
                used = torch.where(constant < 0, used, constant.to(used.dtype))
            observer(index, self.names[index], used, self.probabilities(logits))
        return gates

    def _guarded(self, index: int, x: Tensor, decide: bool = False) -> Tensor | None:
        if not self._in_forward:
            raise RuntimeError(
                "a gated layer was called outside its network; call the whole network, "
                "because the gate's state runs through all layers"
            )
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._step(index, x, decide)
        return self._step(index, x, decide)

    def _step(self, index: int, x: Tensor, decide: bool) -> Tensor | None:
        # An export puts other tensors in the place of the weights while it looks on.
        step = None if torch.compiler.is_exporting() else self._steps.get(index)
        if step is None:
            step = self._weights(index)
            if not torch.compiler.is_exporting():
                self._steps[index] = step
        state = self._state if self.settings.recurrent else None
        if state is None:
            like = self.running_mean
            hidden = self.settings.hidden
            images = x.shape[0]  # len() is a plain number to torch.export
            state = (like.new_zeros(images, hidden), like.new_zeros(images, hidden))
        if can_step(x, step):
            self._state, logits = gate_step(x, step, state, decide)
            return logits
        pooled = self._means.of(x, self.running_mean.dtype)
        if step.layer_norm:
            pooled = F.layer_norm(pooled, pooled.shape[1:])
        if step.into is not None:
            pooled = F.linear(pooled, *step.into)
        (weight, bias), (recurrent, offset) = step.input, step.recurrent
        self._state = torch.lstm_cell(pooled, state, weight, recurrent, bias, offset)
        return F.linear(self._state[0], *step.out) if decide else None

    def _weights(self, index: int) -> Step:
        cell, into, out = self.cell, _linear(self.inputs[index]), _linear(self.outputs[index])
        joined = self._joined[index]
        entry = (cell.weight_ih, cell.bias_ih)
        if joined:
            entry = (
                getattr(self, f"joined_weight_{index}"),
                getattr(self, f"joined_bias_{index}"),
            )
        return Step(
            None if joined else (into.weight, into.bias),
            entry,
            (cell.weight_hh, cell.bias_hh),
            (out.weight, out.bias),
            self.settings.input_norm == "layer_norm",
        )


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module


@torch.no_grad()
def _join(into: nn.Linear, cell: nn.LSTMCell) -> tuple[Tensor, Tensor]:
    """W_ih P and W_ih p + b_ih, so that W_ih (P x + p) + b_ih is one product."""

    def exact(tensor: Tensor) -> Tensor:
        return tensor.to("cpu", torch.float64)

    outer, offset = exact(cell.weight_ih), exact(cell.bias_ih)
    weight, bias = outer @ exact(into.weight), outer @ exact(into.bias) + offset
    return weight.to(cell.weight_ih), bias.to(cell.bias_ih)
