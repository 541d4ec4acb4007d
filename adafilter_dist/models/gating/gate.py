"""The recurrent gate: one LSTM walks through the layers and decides filter by filter.

For layer i with input x: u_i = P_i GAP(x); (h_i, c_i) = LSTM(u_i, (h_{i-1}, c_{i-1}));
logits = Q_i h_i; gate = binarise(logits), 1 for the fine-tuned filter, 0 for the pre-trained one.
With `recurrent=false`, an ablation, (h_{i-1}, c_{i-1}) are zero for every layer.
With `decision=picture` the logits of all filters of a group of layers start from the decision on
the whole picture (`picture_decision.py`), and Q_i h_i is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from adafilter_dist.models.gating import micro_batches
from adafilter_dist.models.gating.control_gates import ControlGates
from adafilter_dist.models.gating.estimators import binarise, gumbel_noise
from adafilter_dist.models.gating.picture_decision import PictureDecision, group_of_layers
from adafilter_dist.models.gating.pooled_means import PooledMeans
from adafilter_dist.models.gating.step_statistics import StepStatistics
from adafilter_dist.models.ops import gate_step
from adafilter_dist.models.ops.filter_stack import FilterStack
from adafilter_dist.models.ops.gate_step import GateForward, GateStep, Made
from adafilter_dist.models.ops.gate_step_reference import Cell, Layer, Rule
from adafilter_dist.recipe.sections.model import Gate

Override = Callable[[int, Tensor], Tensor]
Observer = Callable[[int, str, Tensor, Tensor], None]
# Share of the new step in the running mean of the gates.
RUNNING_RATE = 0.1


@dataclass
class GateDecisions:
    """The gates and logits (N, C) of one forward, by layer."""

    gates: dict[int, Tensor] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    """What the decision on each picture saw (N, D), where there is one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> GateDecisions:
        # The tensors hang in an autograd graph, which cannot be copied and belongs to the original.
        return GateDecisions()

    def __reduce__(self) -> tuple[type[GateDecisions], tuple[()]]:
        return GateDecisions, ()


@dataclass(slots=True)
class _Walk:
    """The fused steps of a forward: what they share, and the LSTM's state after the last of them.

    Not attributes of the module, which takes ten times as long to set one.
    """

    forward: GateForward
    token: Tensor
    state: tuple[Tensor, Tensor] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        # Of a forward that an exception ended: its tensors cannot be copied.
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


class RecurrentGate(nn.Module, StepStatistics):
    """One LSTM shared by all gated layers, a projection in and one out for each.

    `layers` gives (name, C_in, C_out) in order of execution. In training the mean over filters and
    images of each layer's gates, and their variance over images (at most 0.25) averaged over the
    filters, are summed up; after the step they are in `last_mean` and `last_variance` (one value a
    layer), and `running_mean` is updated.
    """

    running_mean: Tensor
    last_mean: Tensor
    last_variance: Tensor
    step_sums: Tensor
    widths: Tensor

    def __init__(
        self,
        layers: Sequence[tuple[str, int, int]],
        settings: Gate,
        *,
        features: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`features`: how many the decision on a picture sees; None where there is none."""
        super().__init__()
        self.names = [name for name, _, _ in layers]
        self.settings = settings
        hidden = settings.hidden
        kind: dict[str, Any] = {"device": device or torch.get_default_device(), "dtype": dtype}
        # Without torch's own initialisation, which would draw from the global generator.
        linear = partial(skip_init, nn.Linear, **kind)
        self.inputs = nn.ModuleList(linear(c_in, hidden) for _, c_in, _ in layers)
        self.cell = skip_init(nn.LSTMCell, hidden, hidden, **kind)
        self.outputs = nn.ModuleList(linear(hidden, c_out) for _, _, c_out in layers)
        self._initialise(generator)
        self.picture: PictureDecision | None = None
        if features is not None:
            self.picture = PictureDecision(features, settings.groups, **kind)
        self.control: ControlGates | None = None
        if settings.is_control:
            widths = [c_out for _, _, c_out in layers]
            self.control = ControlGates(settings, widths, generator, **kind)
        self.group_of_layer = group_of_layers(len(layers), settings.groups)
        mean = 1 / (1 + math.exp(-settings.bias))
        if self.picture is not None:
            mean = 1.0
        elif self.control is not None:
            mean = settings.probability
        start = torch.full((len(layers),), mean, **kind)
        self.register_buffer("running_mean", start)
        self.register_buffer("last_mean", start.clone(), persistent=False)
        self.register_buffer("last_variance", torch.zeros_like(start), persistent=False)
        sums = torch.zeros(3 * len(layers), **kind)  # [mean | variance | micro-batches]
        self.register_buffer("step_sums", sums, persistent=False)
        each = torch.tensor([c_out for _, _, c_out in layers]).to(kind["device"])
        self.register_buffer("widths", each, persistent=False)
        self.overrides: list[Override] = []
        self.observers: list[Observer] = []
        self.decisions = GateDecisions()
        self._in_forward = False
        self._state: tuple[Tensor, Tensor] | None = None
        self._picture_logits: Tensor | None = None
        self._walk: _Walk | None = None
        self._means = PooledMeans()
        self.filters = FilterStack()

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        # Drawn on the CPU in float32, so that device and dtype do not change the start.
        def draw(parameter: Tensor, fan_in: int, scale: float = 1.0) -> None:
            values = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_((2 * values - 1) * scale * fan_in**-0.5)

        settings = self.settings
        for linear in self.inputs:
            assert isinstance(linear, nn.Linear)
            for parameter in linear.parameters():
                draw(parameter, linear.in_features)
        for parameter in self.cell.parameters():
            draw(parameter, settings.hidden)
        for linear in self.outputs:
            assert isinstance(linear, nn.Linear)
            draw(linear.weight, settings.hidden, settings.init_scale)
            linear.bias.fill_(settings.bias)

    def start(self, features: Tensor | None = None) -> None:
        """Begin a forward of the network: the recurrent state is zero.

        `features` (N, D) are what the decision on each picture sees; None where that is the same
        for all pictures, or there is no such decision.
        """
        self.decisions = GateDecisions(features=features)
        self._in_forward, self._state, self._picture_logits = True, None, None
        self._walk = None
        self._means.clear()
        if self.training and not torch.compiler.is_compiling():
            self.filters.refresh(self.running_mean.device)
        if self.picture is not None:
            with _outside_autocast(self.running_mean.device):
                self._picture_logits = self.picture(features)

    def stop(self) -> None:
        """End a forward of the network; its gates and logits stay in `decisions`."""
        if self._in_forward and self.training and self.decisions.gates:
            self._gather(self.decisions.gates)
        self._in_forward, self._state, self._picture_logits = False, None, None
        self._walk = None
        self._means.clear()
        self.filters.forget()

    def discard(self) -> None:
        """Free the last forward's graph, also of one that an exception ended halfway."""
        self.start()
        self.stop()

    def remember_mean(self, x: Tensor, mean: Tensor) -> None:
        """Note the mean of x over its pixels, from the layer that made x: no second pass over x."""
        self._means.add(x, mean)

    def forward(self, index: int, x: Tensor) -> Tensor:
        """Gates (N, C_out) of layer `index` for its input x (N, C_in, H, W).

        Computed in the dtype of the gate's own parameters, outside autocast.
        """
        if not self._in_forward:
            raise RuntimeError(
                "a gated layer was called outside its AdaFilterNet; call the whole network, "
                "because the gate's state runs through all layers"
            )
        settings = self.settings
        with _outside_autocast(x.device):
            # What was so for the forward's first layer is so for all.
            if self._walk is not None or self._steps_are_fused():
                gates, logits = self._fused_step(index, x)
            elif self.control is None:
                logits = self._logits(index, x)
                gates = binarise(logits, settings.estimator, settings.temperature, self.training)
            else:
                like = x.new_zeros(
                    (x.shape[0], self.outputs[index].out_features),  # type: ignore[arg-type]
                    dtype=self.running_mean.dtype,
                )
                gates = self.control.gates(index, like, self.training)
                logits = torch.logit(gates, eps=1e-6) * settings.temperature
            for override in self.overrides:
                gates = override(index, gates)
            self._note(index, gates, logits)
        return gates

    def _note(self, index: int, gates: Tensor, logits: Tensor) -> None:
        """Keep them for the penalty, the step's statistics and whoever observes the gates."""
        self.decisions.gates[index], self.decisions.logits[index] = gates, logits
        for observer in self.observers:
            observer(index, self.names[index], gates, self.probabilities(logits))

    def next_step(self, index: int, x: Tensor) -> GateStep | None:
        """What layer `index` computes its own gates from, in its one node (`layer_node`).

        None where the gate computes them: outside of a forward, in a first step, where steps are
        not fused, and where gates are overridden or somebody has hooks on the gate.
        """
        walk = self._walk
        if walk is None or self.overrides or self._forward_hooks or self._forward_pre_hooks:
            return None
        return self._step_inputs(walk, index, x)

    def note_step(self, index: int, made: Made) -> None:
        """The step that was computed there."""
        assert self._walk is not None
        self._walk.state = made.h, made.c
        self._means.add(made.out, made.mean)
        self._note(index, made.gates, made.logits)

    def _steps_are_fused(self) -> bool:
        """Whether a step is one operation, whose gradients are written out: in training."""
        return (
            self.training
            and self.control is None
            and self.settings.estimator != "semhash"
            # A compiler fuses it itself. DeepSpeed's ZeRO-3 brings weights when modules are called.
            and not torch.compiler.is_compiling()
            and not hasattr(self.cell.weight_ih, "ds_id")
        )

    def _fused_step(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and logits (N, C_out)."""
        walk = self._walk
        if walk is None:
            forward = GateForward(*self._fused_weights(), gate_step.pick(x))
            self._walk = walk = _Walk(forward, forward.token())
        of, token, *inputs = self._step_inputs(walk, index, x)
        gates, logits, walk.state = of.step(token, index, *inputs)  # type: ignore[arg-type]
        return gates, logits

    def _step_inputs(self, walk: _Walk, index: int, x: Tensor) -> GateStep:
        settings, forward = self.settings, walk.forward
        pooled = self._means.of(x, forward.cell.weight_ih.dtype)
        noise = None
        if settings.estimator == "gumbel":
            like = pooled.new_empty(len(pooled), forward.layers[index].weight_out.shape[0])
            noise = gumbel_noise(like, settings.temperature)
        shift = None
        if self._picture_logits is not None:
            shift = self._picture_logits, self.group_of_layer[index]
        state = walk.state if settings.recurrent else None
        return GateStep(forward, walk.token, pooled, state, shift, noise)

    def _fused_weights(self) -> tuple[list[Layer], Cell, Rule]:
        settings, cell = self.settings, self.cell
        # Their dictionaries: asking a module for an attribute takes ten times as long.
        pairs = zip(self.inputs, self.outputs, strict=True)
        parameters = ((into._parameters, out._parameters) for into, out in pairs)
        layers = [
            Layer(into["weight"], into["bias"], out["weight"], out["bias"])  # type: ignore[arg-type]
            for into, out in parameters
        ]
        rule = Rule(
            normalise=settings.input_norm == "layer_norm",
            sigmoid=settings.estimator != "identity",
            temperature=settings.temperature,
            recurrent=settings.recurrent,
        )
        return layers, Cell(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh), rule

    def _logits(self, index: int, x: Tensor) -> Tensor:
        # One step of the LSTM: global average pooling, projection in, recurrent state.
        pooled = self._means.of(x, self.running_mean.dtype)
        if self.settings.input_norm == "layer_norm":
            pooled = F.layer_norm(pooled, pooled.shape[1:])
        state = self._state if self.settings.recurrent else None
        self._state = self.cell(self.inputs[index](pooled), state)

        # Projection out, on top of the decision on the picture: one logit an image and filter.
        return self.with_picture(index, self.outputs[index](self._state[0]))

    def with_picture(self, index: int, logits: Tensor) -> Tensor:
        """Logits (N, C_out) of layer `index`, on top of the decision on the picture."""
        picture = self._picture_logits
        if picture is None:
            return logits
        group = self.group_of_layer[index]
        return logits + picture[:, group : group + 1]

    def probabilities(self, logits: Tensor) -> Tensor:
        """The noise-free soft gate, sigmoid(logits / temperature)."""
        return torch.sigmoid(logits / self.settings.temperature)

    @torch.no_grad()
    def _gather(self, gates: dict[int, Tensor]) -> None:
        """Add up the statistics of a forward's gates (N, C_out), by layer."""
        every = list(gates) == list(range(len(self.names)))
        if torch.compiler.is_compiling() or not every:
            for index, of_layer in gates.items():
                self._gather_layer(index, of_layer)
            return
        # All layers together: mean and variance of each filter over the images of a micro-batch.
        whole = torch.cat([gates[index] for index in range(len(gates))], 1)
        count = micro_batches.current.count
        parts = whole.unflatten(0, (count, len(whole) // count))
        variance, mean = torch.var_mean(parts, 1, correction=0)
        rows = torch.cat((mean, variance)).unflatten(0, (2, count)).sum(1).mT
        means = torch.segment_reduce(rows, "mean", lengths=self.widths, unsafe=True)
        self.step_sums.view(3, -1).add_(F.pad(means.mT, (0, 0, 0, 1), value=count))

    def _gather_layer(self, index: int, gates: Tensor) -> None:
        sums = self.step_sums.view(3, -1)
        for part in micro_batches.current.split(gates):
            sums[0, index] += part.mean()
            sums[1, index] += part.var(0, unbiased=False).mean()
            sums[2, index] += 1

    def step_statistics(self) -> list[Tensor]:
        return list(self.step_sums.split(len(self.names)))

    def flat_statistics(self) -> Tensor:
        return self.step_sums

    def statistic_sizes(self) -> list[int]:
        return [len(self.names)] * 3

    @torch.no_grad()
    def apply_step_statistics(self, means: list[Tensor]) -> None:
        mean, variance, count = means
        none = count == 0
        for last, value in ((self.last_mean, mean), (self.last_variance, variance)):
            last.copy_(torch.where(none, last, value / (count + none)))
        self.running_mean.lerp_(self.last_mean, RUNNING_RATE)
        self.discard_step_statistics()

    def discard_step_statistics(self) -> None:
        self.step_sums.zero_()


def _outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Nothing where there is no autocast: torch.export cannot read back what leaves none."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def find_gate(model: nn.Module) -> RecurrentGate:
    """The gate inside `model`, which may be wrapped; ValueError if there is none."""
    for module in model.modules():
        if isinstance(module, RecurrentGate):
            return module
    raise ValueError(f"{type(model).__name__} has no gate: it was not converted to AdaFilter")
