"""The real command, with a record of what every training step consumed, and signals on time.

    python -m tests.distributed.recorder VERB ...

``RECORD`` in the environment is a folder: each rank adds to ``RECORD/rank-<R>.jsonl`` a line a
micro-batch, before it is used. ``SIGNALS`` is words of RANK:STEP:NAME, as in ``1:5:TERM``: as that
rank begins that step (from 0) it gets the signal, as if somebody had sent it just then. With
``AFTER``, a pattern below the working folder, not before there is such a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from adafilter_dist.__main__ import main
from adafilter_dist.data.loading.batch import DeviceBatch
from adafilter_dist.training import step


def install() -> None:
    """From now on this process records and signals itself."""
    rank = int(os.environ.get("RANK", "0"))
    record = Path(os.environ["RECORD"]) / f"rank-{rank}.jsonl"
    planned = [word.split(":") for word in os.environ.get("SIGNALS", "").split()]
    due = [(int(when), f"SIG{name}") for who, when, name in planned if int(who) == rank]
    inputs = step.TrainingStep._inputs

    def recorded(
        self: step.TrainingStep, batch: DeviceBatch, number: int, epoch: int, micro_batches: range
    ) -> Any:
        columns = (batch.index, batch.labels, batch.images)
        parts = zip(*(column.chunk(batch.count) for column in columns), strict=True)
        for micro_batch, (index, labels, images) in zip(micro_batches, parts, strict=True):
            line = {
                "step": number,
                "micro_batch": micro_batch,
                "samples": index.tolist(),
                "labels": labels.tolist(),
                "pixels": hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest(),
            }
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if due and due[0][0] <= number and os.environ.get("AFTER"):
            _wait_for(Path.cwd(), os.environ["AFTER"])
        while due and due[0][0] <= number:
            os.kill(os.getpid(), signal.Signals[due.pop(0)[1]])
        return inputs(self, batch, number, epoch, micro_batches)

    step.TrainingStep._inputs = recorded  # type: ignore[method-assign]


def _wait_for(folder: Path, pattern: str) -> None:
    while not any(folder.glob(pattern)):
        time.sleep(0.01)


if __name__ == "__main__":
    install()
    sys.exit(main())
