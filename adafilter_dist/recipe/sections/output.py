"""``checkpoint:``, ``evaluate:`` and ``log:``, what a run saves, measures and writes down."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from adafilter_dist.recipe.sections.base import (
    AbsolutePath,
    Count,
    DomainGates,
    Duration,
    Section,
    check_duration,
)

_MOST_STEPS = 1_000_000_000


def _every(value: Any) -> Any:
    # One validator for all three, so that a mistake is one line and not one for each.
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST_STEPS:
        return value
    try:
        return value if value == "auto" else check_duration(value)
    except ValueError:
        raise ValueError(
            "must be a number of steps from 1, a duration like '90s', '10min' or '1.5h', or 'auto'"
        ) from None


Every = Annotated[int | str, BeforeValidator(_every)]


class Checkpoint(Section):
    """When the whole state is saved, and how many are kept."""

    every: Every = Field(
        "10min",
        description="steps, a duration, or auto: what loses least by mtbi and measured cost",
    )
    mtbi: Duration = Field(
        "2h", description="mean time between interruptions of the whole job, for every=auto"
    )
    lease: Duration = Field(
        "60s",
        description="how long a process on another machine may be silent before its run is "
        "taken over",
    )
    keep: Annotated[int, Field(ge=2, le=10_000)] = Field(
        2, description="checkpoints that stay on the disk"
    )


class Evaluate(Section):
    """What is measured on the test set at the end of a run."""

    test: bool = Field(
        True,
        description="whether the run ends with the test set; false: with its last validation, and "
        "no picture of the test set is read",
    )
    probe: bool = Field(False, description="a linear probe on the frozen features beside it")
    gates: bool = Field(
        True,
        description="figures of the gates, and accuracy with others in their place: six to ten "
        "more passes over the test set",
    )
    control: AbsolutePath | None = Field(
        None,
        description="folder of a run on the same data, such as one with a frozen gate, whose "
        "accuracy on the same pictures is subtracted",
    )
    oracle: DomainGates | None = Field(
        None,
        description="the gate that each domain of the data ought to have, e.g. {near: 0, far: 1}, "
        "or one for each group of consecutive layers, {near: [0, 1], far: 1}",
    )


class Log(Section):
    """Where figures go and how often."""

    to: list[Literal["tensorboard", "wandb"]] = Field(
        ["tensorboard"], description="beside console and metrics.jsonl; skipped if not installed"
    )
    every: Count = Field(
        20, description="steps between training rows in metrics.jsonl; a short run has ten at least"
    )
