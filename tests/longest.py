"""Test files by their seconds: the longest begin first, so that all processes end together."""

from __future__ import annotations

from pathlib import Path

import pytest

# As --durations shows them on two cores. What is missing takes less, and follows. The first waits
# for a cluster most of the time.
LONGEST = (
    "cluster/test_runs.py",
    "models/gating/test_identities.py",
    "test_setup.py",
    "launch/test_local_runs.py",
    "distributed/test_faults.py",
    "distributed/test_zero.py",
    "distributed/test_elastic.py",
    "kills/test_writer.py",
    "benchmarks/test_speed.py",
    "distributed/test_changes.py",
    "kills/test_torchrun.py",
    "cluster/test_signals.py",
    "engine/test_compiled.py",
    "documented/test_played.py",
    "distributed/test_stop.py",
    "kills/test_random.py",
    "distributed/test_staging.py",
    "cluster/test_cluster.py",
    "data/loading/test_loader.py",
    "models/inference/test_selected_conv.py",
    "distributed/test_best.py",
    "kills/test_trainer.py",
    "models/ops/test_passes_triton.py",
)
_PLACES = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; the tests of a file stay as they are."""
    items.sort(key=lambda item: _PLACES.get(item.path, len(LONGEST)))
