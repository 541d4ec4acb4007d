"""What a conversion did, for people and for logs."""

from __future__ import annotations

from dataclasses import dataclass

# Below this share of gated convolution weights a user should know that much is only fine-tuned.
LOW_SHARE = 0.7


@dataclass(frozen=True)
class GatedLayer:
    """A gated convolution: path, its BatchNorm's path, and its shape."""

    name: str
    batchnorm: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    weights: int

    @property
    def shape(self) -> str:
        """For example ``64 -> 128 3x3 /2, 4 groups``."""
        text = f"{self.in_channels} -> {self.out_channels} {self.kernel[0]}x{self.kernel[1]}"
        text += f" /{self.stride[0]}" if max(self.stride) > 1 else ""
        return text + (f", {self.groups} groups" if self.groups > 1 else "")


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of a converted network. `frozen` are the twins S, in buffers; the rest is trained,
    less what `model.ungated=freeze` holds still (`still`).
    """

    frozen: int
    tuned: int
    gate: int
    batchnorm: int
    head: int
    other: int
    still: int


@dataclass(frozen=True)
class ConversionReport:
    """Gated layers in order of execution, what was left out and why, and the counts."""

    gated: tuple[GatedLayer, ...]
    left_out: tuple[tuple[str, str], ...]
    found_by: str
    gated_share: float
    parameters: ParameterCounts

    def warnings(self) -> list[str]:
        """What a user should be told, a line each."""
        if self.gated_share >= LOW_SHARE:
            return []
        return [
            f"only {self.gated_share:.0%} of the convolution weights are gated "
            f"({len(self.gated)} layers); the rest is fine-tuned as usual"
        ]

    def lines(self) -> list[str]:
        """The report as plain lines."""
        width = max(len(layer.name) for layer in self.gated)
        text = [f"{len(self.gated)} gated layers in order of execution (found by {self.found_by}):"]
        text += [
            f"  {number:3d}  {layer.name:<{width}}  {layer.shape}"
            for number, layer in enumerate(self.gated)
        ]
        text += [f"{len(self.left_out)} convolutions left out:"] if self.left_out else []
        text += [f"  {name}: {reason}" for name, reason in self.left_out]
        text.append(f"gated share of convolution weights: {self.gated_share:.3f}")
        counts = self.parameters
        text.append(
            f"parameters: frozen {counts.frozen:,}, tuned {counts.tuned:,}, gate {counts.gate:,}, "
            f"batchnorm {counts.batchnorm:,}, head {counts.head:,}, other {counts.other:,}"
            + (f" (held still: {counts.still:,})" if counts.still else "")
        )
        return text + [f"warning: {warning}" for warning in self.warnings()]

    def __str__(self) -> str:
        return "\n".join(self.lines())
