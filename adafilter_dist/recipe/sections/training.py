"""``optim:``, ``ema:`` and ``train:``, what changes the weights, how often and how exactly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from adafilter_dist.recipe.sections.base import (
    AbsolutePath,
    Batch,
    Epochs,
    NotNegative,
    Positive,
    Section,
)


class Optim(Section):
    """Optimizer and learning-rate schedule. Rates are for the global batch as given."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    lr: Positive = Field(
        0.01, description="learning rate of the trunk at its highest, for the global batch as given"
    )
    lr_gate: Positive | None = Field(None, description="of the gate; default lr")
    lr_head: Positive | None = Field(None, description="of the classifier; default lr")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="of SGD")
    nesterov: bool = Field(False, description="of SGD")
    weight_decay: NotNegative = Field(1e-4, description="not on biases and BatchNorm")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="of the learning rates after the warm-up; cosine: to zero"
    )
    step_epochs: list[Epochs] = Field(
        [], description="schedule=step: the rate is multiplied by step_gamma after these epochs"
    )
    step_gamma: Positive = Field(0.1, description="schedule=step: the factor")
    schedule_epochs: Epochs | None = Field(
        None,
        description="length of the schedule in epochs; default train.epochs; afterwards the last "
        "rate is held",
    )
    schedule_on_extend: Literal["stretch", "hold"] | None = Field(
        None,
        description="when a run goes on with more epochs: the schedule over the new length, or "
        "over the length it had",
    )
    warmup_epochs: Annotated[float, Field(ge=0.0, le=1e5)] = Field(
        0.0, description="epochs over which the rates rise from zero"
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of each label that is spread over all classes"
    )

    @property
    def states(self) -> int:
        """Tensors that the optimizer keeps for each parameter."""
        return 2 if self.name == "adamw" else int(self.momentum > 0)

    @model_validator(mode="after")
    def _check(self) -> Optim:
        if self.schedule == "step" and not self.step_epochs:
            raise ValueError("schedule=step needs step_epochs, e.g. optim.step_epochs=[30,60]")
        if self.schedule_epochs is not None and self.warmup_epochs >= self.schedule_epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} leaves nothing of "
                f"schedule_epochs={self.schedule_epochs}"
            )
        return self


class Ema(Section):
    """Exponential moving average of the parameters; evaluated and exported when on."""

    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="0 for off")


_MOST_TOGETHER = 1 << 20


def _together(value: Any) -> Any:
    # One validator for both, so that a mistake is one line and not one for each.
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_TOGETHER:
        raise ValueError(f"must be an integer from 1 to {_MOST_TOGETHER:,}, or 'auto'")
    return value


Together = Annotated[int | str, BeforeValidator(_together)]


class Train(Section):
    """Length, batch and arithmetic of the training."""

    epochs: Epochs = Field(30, description="passes over the training pictures")
    global_batch: Batch = Field(256, description="pictures of one step, over all processes")
    micro_batch: Annotated[int, Field(ge=2, le=1 << 20)] = Field(
        32, description="samples whose statistics are taken together; part of the numbers"
    )
    micro_batches_per_forward: Together = Field(
        1,
        description="micro-batches of a rank that go through the network together, each with its "
        "own statistics: the same numbers, fewer and larger kernels, more memory; auto: as many as "
        "a GPU's memory holds, 1 on a CPU",
    )
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = Field(
        "fp32", description="of activations and weights in forward and backward; bf16, fp16: mixed"
    )
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "high", description="of fp32 matrix products, as torch.set_float32_matmul_precision has it"
    )
    compile: bool = Field(
        False, description="torch.compile; what it compiles is kept between attempts"
    )
    graph: Literal["auto", "off"] = Field(
        "auto",
        description="auto: on a GPU forward and backward are recorded as a CUDA graph and "
        "replayed, where that is known to be safe; the same bits, less work for the host",
    )
    kernels: Literal["auto", "reference"] = Field(
        "auto",
        description="how gated layers train. auto: fused, by Triton on a GPU, by code compiled on "
        "first use on a CPU; reference: as plain PyTorch modules",
    )
    channels_last: bool = Field(
        True, description="layout of activations in memory; the same numbers up to rounding"
    )
    clip_norm: Positive | None = Field(
        None, description="longest gradient of a step, over all weights; default none"
    )
    cache: AbsolutePath | None = Field(
        None,
        description="folder where the outputs of the frozen first layers are kept, to be read "
        "instead of computed by this run and by others; same numbers",
    )
    evaluate_every: Epochs = Field(1, description="epochs between validations")

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of "
                f"micro_batch={self.micro_batch}"
            )
        return self

    @property
    def together(self) -> int:
        """Micro-batches in a forward; 1 for auto, until it is measured."""
        size = self.micro_batches_per_forward
        return size if isinstance(size, int) else 1

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a global batch: the largest usable world size."""
        return self.global_batch // self.micro_batch
