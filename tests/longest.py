"""Test files by their seconds: the longest begin first, so that all processes end together."""

from __future__ import annotations

from pathlib import Path

import pytest

# As --durations shows them on two cores. What is missing takes less, and follows. The first waits
# for a cluster most of the time.
LONGEST = (
    "cluster/test_runs.py",
    "documented/test_played.py",
    "distributed/test_zero.py",
    "launch/test_local_runs.py",
    "models/gating/test_identities.py",
    "distributed/test_elastic.py",
    "distributed/test_method_runs.py",
    "distributed/test_faults.py",
    "distributed/test_stop.py",
    "distributed/test_hangs.py",
    "kills/test_random.py",
    "benchmarks/test_speed.py",
    "kills/test_torchrun.py",
    "kills/test_writer.py",
    "compare/test_local.py",
    "cluster/test_signals.py",
    "test_setup.py",
    "test_package.py",
    "distributed/test_world_sizes.py",
    "distributed/test_meeting_file.py",
    "distributed/test_activation_cache.py",
    "training/test_positive_control.py",
    "typed/test_users_file.py",
    "kills/test_damage.py",
    "test_setup_ffcv.py",
    "distributed/test_interface.py",
    "training/test_forward_size.py",
    "distributed/test_nodes.py",
    "data/loading/test_loader.py",
    "cluster/test_cluster.py",
    "training/test_memory.py",
    "models/inference/test_selected_conv.py",
    "models/ops/test_layer_triton.py",
    "engine/test_compiled.py",
    "evaluate/test_evaluate.py",
    "distributed/test_changes.py",
    "distributed/test_staging.py",
    "data/stored/test_store.py",
    "test_versions.py",
    "kills/test_trainer.py",
    # The fast tests of these take seconds, too.
    "documented/test_collected.py",
    "commands/test_predict.py",
    "commands/test_export.py",
    "models/gating/test_conversion.py",
    "models/gating/test_own_code.py",
    "commands/test_evaluate.py",
    "commands/test_compact.py",
    "engine/test_ddp.py",
    "checkpoint/test_store.py",
    "models/gating/test_absorb_residual.py",
    "recipe/test_yaml_loader.py",
    "methods/test_trained_layers.py",
    "methods/test_methods.py",
    "methods/test_delta.py",
    "models/gating/test_routed_blocks.py",
    "recipe/test_fuzz.py",
    "compare/test_results.py",
    "models/backbone/test_backbones.py",
    "data/prepare/test_prepare.py",
)
_PLACES = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; the tests of a file stay as they are."""
    items.sort(key=lambda item: _PLACES.get(item.path, len(LONGEST)))
