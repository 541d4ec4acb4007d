"""A recipe: its sections, and what must hold between them.

Each section is a frozen, typed class in ``sections``. Every key has a type, a default and a line
of what it means; an unknown key is an error.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from adafilter_dist.recipe.deepspeed_json import contradictions, without_auto
from adafilter_dist.recipe.sections.base import AnyPath, Section
from adafilter_dist.recipe.sections.data import Augment, Data
from adafilter_dist.recipe.sections.engine import DDP, DeepSpeed, Engine
from adafilter_dist.recipe.sections.launch import Launch
from adafilter_dist.recipe.sections.model import AdaFilter, Method, Model
from adafilter_dist.recipe.sections.output import Checkpoint, Evaluate, Log
from adafilter_dist.recipe.sections.training import Ema, Optim, Train


class Recipe(Section):
    """One experiment, complete and fixed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)] = Field(
        description="of the recipe, and of the folder of its runs; letters, digits and . _ -"
    )
    run_dir: AnyPath | None = Field(None, description="default runs/<name>/<8 hex of the run hash>")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="of all that is drawn: the head, the order of pictures, crops, masks"
    )
    deterministic: bool = Field(
        False, description="refuse operations whose bits differ from time to time on a GPU; slower"
    )
    resume: str = Field("auto", description="auto, never, or the path of a run folder")
    data: Data
    augment: Augment = Augment()
    model: Model = Model()
    method: Method = AdaFilter()
    optim: Optim = Optim()
    ema: Ema = Ema()
    train: Train = Train()
    engine: Engine = DDP()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    log: Log = Log()
    launch: Launch = Launch()

    @field_validator("method", mode="before")
    @classmethod
    def _default_method(cls, value: Any) -> Any:
        return {"name": "adafilter", **value} if isinstance(value, dict) else value

    @field_validator("engine", mode="before")
    @classmethod
    def _default_engine(cls, value: Any) -> Any:
        return {"name": "ddp", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.optim.warmup_epochs >= self.train.epochs and self.optim.warmup_epochs > 0:
            raise ValueError(
                f"optim.warmup_epochs={self.optim.warmup_epochs:g} leaves nothing of "
                f"train.epochs={self.train.epochs}; give less than that"
            )
        if self.data.loader == "nvjpeg":
            _check_nvjpeg(self)
        if isinstance(self.engine, DeepSpeed):
            _check_deepspeed(self.engine, self.train, self.deterministic)
        return self


def _check_nvjpeg(recipe: Recipe) -> None:
    if recipe.engine.device == "cpu":
        raise ValueError(
            "data.loader=nvjpeg decodes on a GPU, and engine.device=cpu trains without one; use "
            "data.loader=numba"
        )
    if recipe.augment.policy != "none":
        raise ValueError(
            f"augment.policy={recipe.augment.policy} changes pictures on the CPU, and "
            "data.loader=nvjpeg decodes them on the GPU; use data.loader=numba"
        )


def _check_deepspeed(engine: DeepSpeed, train: Train, deterministic: bool) -> None:
    mistakes = [
        f"engine.config: {line}"
        for line in contradictions(
            without_auto(engine.config),
            stage=engine.zero_stage,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch,
            clip_norm=train.clip_norm,
            deterministic=deterministic,
        )
    ]
    if train.precision == "fp64":
        mistakes.append("train.precision=fp64: DeepSpeed knows no fp64; use engine=ddp")
    if train.compile and engine.zero_stage == 3:
        mistakes.append(
            "train.compile=true: ZeRO-3 fetches weights between the layers, which cannot be "
            "compiled as one; use engine.zero_stage=2 or less"
        )
    if mistakes:
        raise ValueError("\n".join(mistakes))
