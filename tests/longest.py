"""Test files by their seconds: the longest begin first, so that all processes end together."""

from __future__ import annotations

from pathlib import Path

import pytest

# As --durations shows them on two cores. What is missing takes less, and follows. The first waits
# for a cluster most of the time.
LONGEST = (
    "cluster/test_runs.py",
    "distributed/test_zero.py",
    "documented/test_played.py",
    "launch/test_local_runs.py",
    "distributed/test_method_runs.py",
    "benchmarks/test_speed.py",
    "distributed/test_faults.py",
    "kills/test_torchrun.py",
    "models/gating/test_identities.py",
    "kills/test_writer.py",
    "kills/test_random.py",
    "compare/test_local.py",
    "training/test_positive_control.py",
    "cluster/test_signals.py",
    "distributed/test_elastic.py",
    "distributed/test_stop.py",
    "test_setup.py",
    "test_package.py",
    "engine/test_compiled.py",
    "distributed/test_meeting_file.py",
    "distributed/test_activation_cache.py",
    "data/loading/test_loader.py",
    "distributed/test_world_sizes.py",
    "distributed/test_nodes.py",
    "cluster/test_cluster.py",
    "training/test_memory.py",
    "models/inference/test_selected_conv.py",
    "models/ops/test_layer_triton.py",
    "evaluate/test_evaluate.py",
    "distributed/test_changes.py",
    "distributed/test_staging.py",
    "data/stored/test_store.py",
    "test_versions.py",
    "kills/test_trainer.py",
)
_PLACES = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; the tests of a file stay as they are."""
    items.sort(key=lambda item: _PLACES.get(item.path, len(LONGEST)))
