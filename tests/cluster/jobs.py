"""What ``scontrol show job -o`` says of a job."""

from __future__ import annotations

import re
from collections.abc import Mapping

Job = int | str  # 1234, or 1234_5 of an array
_FIELD = re.compile(r"(?:^| )([A-Z][A-Za-z]*(?:[:/][A-Za-z]+)*)=")
_FINAL = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "DEADLINE"),
    *("BOOT_FAIL", "OUT_OF_MEMORY", "REVOKED"),
)


def fields(line: str) -> dict[str, str]:
    """One line of ``scontrol show ... -o`` as names and values; values may contain spaces."""
    found = list(_FIELD.finditer(line))
    ends = [match.start() for match in found[1:]] + [len(line)]
    return {
        match[1]: line[match.end() : end].strip() for match, end in zip(found, ends, strict=True)
    }


def over(job: Mapping[str, str]) -> bool:
    """Whether a job has ended for good, so far as SLURM knows."""
    return job["JobState"] in _FINAL
