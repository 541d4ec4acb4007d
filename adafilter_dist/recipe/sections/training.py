"""``optim:``, ``ema:`` and ``train:``, what changes the weights, how often and how exactly."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

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

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    lr_gate: Positive | None = Field(None, description="default lr")
    lr_head: Positive | None = Field(None, description="default lr")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = Field(1e-4, description="not on biases and BatchNorm")
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_epochs: list[Epochs] = Field(
        [], description="schedule=step: the rate is multiplied by step_gamma after these epochs"
    )
    step_gamma: Positive = 0.1
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
    warmup_epochs: Annotated[float, Field(ge=0.0, le=1e5)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

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


class Train(Section):
    """Length, batch and arithmetic of the training."""

    epochs: Epochs = 30
    global_batch: Batch = 256
    micro_batch: Annotated[int, Field(ge=2, le=1 << 20)] = Field(
        32, description="samples whose statistics are taken together; part of the numbers"
    )
    micro_batches_per_forward: Batch = Field(
        1,
        description="micro-batches of a rank that go through the network together, each with its "
        "own statistics: the same numbers, fewer and larger kernels, more memory",
    )
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    matmul_precision: Literal["highest", "high", "medium"] = "high"
    compile: bool = Field(
        False, description="torch.compile; what it compiles is kept between attempts"
    )
    kernels: Literal["auto", "reference"] = Field(
        "auto",
        description="how gated layers train. auto: fused, by Triton on a GPU, by code compiled on "
        "first use on a CPU; reference: as plain PyTorch modules",
    )
    channels_last: bool = True
    clip_norm: Positive | None = None
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
    def micro_batches(self) -> int:
        """Micro-batches in a global batch: the largest usable world size."""
        return self.global_batch // self.micro_batch
