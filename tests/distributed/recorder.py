"""The real command, with a record of what every training step consumed, and signals on time.

    python -m tests.distributed.recorder VERB ...

``RECORD`` in the environment is a folder: each rank adds to ``RECORD/rank-<R>.jsonl`` a line a
micro-batch, before it is used. ``SIGNALS`` is words of RANK:STEP:NAME, as in ``1:5:TERM``: as that
rank begins that step (from 0) it gets the signal, as if somebody had sent it just then.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from adafilter_dist import step
from adafilter_dist.__main__ import main
from adafilter_dist.data.batch import MicroBatch


def install() -> None:
    """From now on this process records and signals itself."""
    rank = int(os.environ.get("RANK", "0"))
    record = Path(os.environ["RECORD"]) / f"rank-{rank}.jsonl"
    planned = [word.split(":") for word in os.environ.get("SIGNALS", "").split()]
    due = [(int(when), f"SIG{name}") for who, when, name in planned if int(who) == rank]
    forward = step.TrainingStep._forward

    def recorded(
        self: step.TrainingStep, batch: MicroBatch, number: int, epoch: int, micro_batch: int
    ) -> Any:
        line = {
            "step": number,
            "micro_batch": micro_batch,
            "samples": batch.index.tolist(),
            "labels": batch.labels.tolist(),
            "pixels": hashlib.sha256(batch.images.contiguous().numpy().tobytes()).hexdigest(),
        }
        with record.open("a") as file:
            file.write(json.dumps(line) + "\n")
        while due and due[0][0] <= number:
            os.kill(os.getpid(), signal.Signals[due.pop(0)[1]])
        return forward(self, batch, number, epoch, micro_batch)

    step.TrainingStep._forward = recorded  # type: ignore[method-assign]


if __name__ == "__main__":
    install()
    sys.exit(main())
