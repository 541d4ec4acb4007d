"""Who runs the step: the sections of a recipe for each engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from adafilter_dist.recipe.json_file import read_json_object, require_plain
from adafilter_dist.recipe.scalars import plain
from adafilter_dist.recipe.sections.base import Duration, Section, Threads, check_duration


def _read(value: Any) -> Any:
    # The contents, not the place: a run that comes back must not depend on a file that moved.
    if isinstance(value, str):
        return read_json_object(value)
    require_plain(value)
    return plain(value)


def _hang(value: Any) -> Any:
    # One validator for all three, so that a mistake is one line and not one for each.
    try:
        return value if value in (None, "auto") else check_duration(value)
    except ValueError:
        raise ValueError(
            "must be a duration like '90s' or '10min', 'auto', or null: not watched"
        ) from None


Hang = Annotated[str | None, BeforeValidator(_hang)]


def _integer(value: Any) -> Any:
    # True and 1.0 equal 1, and would be taken for it.
    if isinstance(value, bool | float):
        raise ValueError("must be an integer")
    return value


class AnyEngine(Section):
    """What every engine is asked."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPU of the rank where there is one"
    )
    timeout: Duration = Field(
        "10min", description="how long a rank is waited for before the others give up"
    )
    hang: Hang = Field(
        "auto",
        description="how long a rank may stand still in a step before it counts as hung; auto: 20 "
        "steps' time, at least 60s; null: it is not watched",
    )
    threads: Threads | None = Field(None, description="CPU threads per rank; default shared")


class DDP(AnyEngine):
    """torch's DistributedDataParallel."""

    name: Literal["ddp"] = "ddp"


class DeepSpeed(AnyEngine):
    """DeepSpeed: optimizer state, gradients and weights shared out over the ranks."""

    name: Literal["deepspeed"] = "deepspeed"
    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_integer)] = Field(
        2, description="1 shares out the optimizer's state, 2 gradients too, 3 weights too"
    )
    config: Annotated[dict[str, Any], BeforeValidator(_read)] = Field(
        {}, description="DeepSpeed's own settings, a mapping or a JSON file; merged in"
    )


Engine = Annotated[DDP | DeepSpeed, Field(discriminator="name")]
