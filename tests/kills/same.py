"""What two runs ended with, compared bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

MEASURED = ("time", "images_per_second", "data_wait")
"""What a row says of the clock; everything else is a function of the recipe."""


def rows(run: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl, without what was measured by the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def tensors(run: Path) -> dict[str, bytes]:
    """All that a run ends with, as bytes by name, with type and shape.

    Weights, running statistics, optimizer state and moving average of the newest checkpoint, the
    frozen copies, and the exported best model.
    """
    newest = max((run / "checkpoints").glob("step-*"))
    files = [*sorted(newest.glob("*.safetensors")), run / "best" / "model.safetensors"]
    files += sorted((run / "checkpoints").glob("frozen.*"))
    found = {}
    for file in files:
        for name, array in load_file(file).items():
            key = f"{file.parent.name}/{file.name}: {name} {array.dtype} {array.shape}"
            found[key] = array.tobytes()
    found[f"{newest.name}/state.json"] = (newest / "state.json").read_bytes()
    return found


def differences(run: Path, wanted: Path) -> list[str]:
    """What is not the same, one line each; empty where every bit is."""
    ours, theirs = tensors(run), tensors(wanted)
    found = [f"only in one: {name}" for name in sorted(ours.keys() ^ theirs.keys())]
    found += [
        f"bits differ: {n}" for n in sorted(ours.keys() & theirs.keys()) if ours[n] != theirs[n]
    ]
    mine, yours = rows(run), rows(wanted)
    # As text: in JSON two numbers are the same exactly if their shortest digits are.
    seen = Counter((row["kind"], row.get("split"), row["step"]) for row in mine)
    found += [f"{count} rows of {key}" for key, count in seen.items() if count > 1]
    if len(mine) != len(yours):
        found.append(f"{len(mine)} rows instead of {len(yours)}")
    for row, other in zip(mine, yours, strict=False):
        if json.dumps(row) != json.dumps(other):
            found.append(f"row {json.dumps(row)} instead of {json.dumps(other)}")
            break
    return found
