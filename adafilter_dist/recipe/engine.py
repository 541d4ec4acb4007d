"""Who runs the step: the sections of a recipe for each engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from adafilter_dist.recipe.section import Duration, Section


def _read(value: Any) -> Any:
    # The contents, not the place: a run that comes back must not depend on a file that moved.
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError('must hold a JSON object, e.g. {"zero_optimization": {"stage": 2}}')
    return found


class AnyEngine(Section):
    """What every engine is asked."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout: Duration = Field(
        "10min", description="how long a rank is waited for before the others give up"
    )
    threads: PositiveInt | None = Field(None, description="CPU threads per rank; default shared")


class DDP(AnyEngine):
    """torch's DistributedDataParallel."""

    name: Literal["ddp"] = "ddp"


class DeepSpeed(AnyEngine):
    """DeepSpeed: optimizer state, gradients and weights shared out over the ranks."""

    name: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="1 shares out the optimizer's state, 2 gradients too, 3 weights too"
    )
    config: Annotated[dict[str, Any], BeforeValidator(_read)] = Field(
        {}, description="DeepSpeed's own settings, a mapping or a JSON file; merged in"
    )


Engine = Annotated[DDP | DeepSpeed, Field(discriminator="name")]
