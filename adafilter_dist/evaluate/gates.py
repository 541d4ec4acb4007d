"""What a trained network's gates do: figures of the gates, and accuracy with other gates.

None of these figures shows by itself that learning the gates was of use. Accuracy falls when
pictures get each other's gates also where the gate was never trained, because filters and
BatchNorms adapted to whatever bits there were. What does show it is a control: the same run with
its gate frozen, measured on the same pictures (`report.control`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adafilter_dist.evaluate.ablations import TITLES, Ablation, ablations_of
from adafilter_dist.evaluate.forward_pass import (
    EvalBatches,
    ForwardSettings,
    OutcomeRows,
    outcomes_of,
    sweep,
)
from adafilter_dist.evaluate.gate_choices import GateChoices
from adafilter_dist.evaluate.gate_figures import (
    DomainGates,
    GateFigures,
    LayerGates,
    domain_gates,
    group_counts,
    layer_gates,
)
from adafilter_dist.evaluate.gate_recorder import GateRecorder, widths_of
from adafilter_dist.evaluate.scores import Evaluation, Outcomes
from adafilter_dist.models.gating.control_gates import OracleGates, gates_by_layer
from adafilter_dist.models.gating.gate import find_gate
from adafilter_dist.models.gating.gate_overrides import override_gates


@dataclass(frozen=True)
class GateEvaluation:
    """The same pictures with the learned gates, and with each of the ``ablations``' gates.

    ``outcomes`` and ``choices`` are those of the learned gates. ``forwards`` is how many passes of
    the network each picture took.
    """

    learned: Evaluation
    outcomes: Outcomes
    ablations: dict[str, Ablation]
    layers: list[LayerGates]
    figures: GateFigures
    domains: list[DomainGates]
    choices: GateChoices
    forwards: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the confusion matrices."""
        return {
            "learned": self.learned.to_dict(),
            "figures": self.figures.to_dict(),
            "domains": [domain.to_dict() for domain in self.domains],
            "ablations": {name: one.to_dict() for name, one in self.ablations.items()},
            "layers": [layer.to_dict() for layer in self.layers],
            "forwards": self.forwards,
        }


def evaluate_gates(
    model: nn.Module,
    loader: EvalBatches,
    settings: ForwardSettings,
    num_classes: int,
    seed: int = 0,
    oracle: OracleGates | None = None,
) -> GateEvaluation:
    """Learned gates in one pass over the data; all ablations, known by then, in a second one.

    ``oracle`` names the gate (0 to 1) that each domain ought to have, or one for each group of its
    layers. Keeps one bit per image and filter (84 MB for ResNet-50 on 25,250 images). Collective;
    errors as in ``evaluate``; ValueError for a model without gates.
    """
    n = loader.total
    widths = widths_of(model)
    recorder = GateRecorder(model, n, settings.device)

    def second(positions: Tensor, labels: Tensor, forward: Callable[[], Tensor]) -> None:
        for name, gates in wanted.items():
            with override_gates(model, _replay(gates.at(positions), widths)):
                rows[name].add(positions, forward(), labels)

    own = outcomes_of(model, loader, settings, num_classes, recorder)
    bits, filters = recorder.complete(), recorder.filters
    classes, by_domain = group_counts(bits, filters, own.labels, num_classes, loader.domains)
    domains = None if by_domain is None else loader.domains
    named = None
    if oracle is not None and domains is not None:
        named = gates_by_layer(oracle, domains.names, len(widths))
        named = named.repeat_interleave(torch.tensor(widths), 1)
    wanted = ablations_of(bits, filters, own.labels, classes, domains, by_domain, named, seed)
    rows = {name: OutcomeRows(n, num_classes, settings.device) for name in wanted}
    sweep(model, loader, settings, second, f"evaluating with {len(wanted)} other gates")

    ablations = {}
    for name, gates in wanted.items():
        other = rows[name].complete()
        ablations[name] = Ablation.between(own, other, gates.measured, num_classes, loader.domains)
    names = find_gate(model).names
    return GateEvaluation(
        learned=Evaluation.of(own, num_classes, loader.domains),
        outcomes=own,
        ablations={name: ablations[name] for name in TITLES if name in ablations},
        layers=layer_gates(names, widths, classes, by_domain, domains.names if domains else ()),
        figures=GateFigures.of(classes, by_domain),
        domains=domain_gates(domains, by_domain) if by_domain and domains else [],
        choices=GateChoices.of(bits, names, widths),
        forwards=1 + len(wanted),
    )


def _replay(gates: Tensor, widths: list[int]) -> Callable[[int, Tensor], Tensor]:
    """Gates (b or 1, filters) in the place of a network's own, layer by layer."""
    parts = gates.split(widths, dim=1)
    return lambda index, own: parts[index].to(own).expand_as(own)
