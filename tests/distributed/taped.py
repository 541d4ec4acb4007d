"""The real command with steps that are recorded and replayed, on the stand-in for CUDA graphs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adafilter_dist.models.ops.device_graph import Work
from adafilter_dist.models.ops.operator_tape import TapeRecorder
from adafilter_dist.training import session
from tests.distributed import recorder


def install() -> None:
    """From now on this process replays, and adds a byte a replay to ``RECORD/replays-<rank>``."""
    recorder.install()
    counts = Path(os.environ["RECORD"]) / f"replays-{os.environ.get('RANK', '0')}"

    class Counted(TapeRecorder):
        def record(self, work: Work, generators: Sequence[torch.Generator] = ()) -> Work:
            replay = super().record(work, generators)

            def counted() -> None:
                replay()
                with counts.open("a") as file:
                    file.write(".")

            return counted

    def recorder_of(*_: Any) -> tuple[TapeRecorder, list[str]]:
        return Counted(), []

    session.recorder_of = recorder_of  # type: ignore[attr-defined]
