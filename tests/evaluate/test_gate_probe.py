"""How far the gate moved, against bits that are known, and on a real run's pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adafilter_dist.data.stored.prepared import open_prepared
from adafilter_dist.distributed import join_world
from adafilter_dist.evaluate import Evaluator, evaluate, gate_probe
from adafilter_dist.evaluate.gate_probe import (
    GateMovement,
    ProbeGates,
    ValidationProbe,
    probe_gates,
)
from adafilter_dist.methods.export import load
from adafilter_dist.models.backbone.backbones import resolve_preprocess
from adafilter_dist.recipe import load_recipe
from tests.shared.small_run import small_run

LABELS = np.array([0, 0, 0, 2])


def probe(gates: list[str], data: str = "d") -> ProbeGates:
    """Of pictures whose gates are written as "0110"."""
    bits = np.array([[int(gate) for gate in picture] for picture in gates], dtype=np.uint8)
    packed = np.packbits(bits, axis=1)
    return ProbeGates("val", data, bits.shape[1], packed, LABELS[: len(gates)])


START = probe(["1100110010"] * 4)  # more than one byte a picture


def test_bits_that_change_to_and_fro_leave_the_gate_where_it_was() -> None:
    now = probe(["0011110010", "1100110010", "0011110010", "1100110010"])
    moved = GateMovement.between_probes(START, now)
    assert (moved.start, moved.mean, moved.drift) == (0.5, 0.5, 0)
    assert (moved.moved, moved.changed) == (0, 0.2)
    warning = moved.warning()
    assert warning is not None and "0.500 before the first step, 0.500 now" in warning
    assert "20% of the bits changed" in warning and "less than 0.05" in warning


def test_a_gate_that_tells_two_kinds_of_pictures_apart_has_left_its_start() -> None:
    moved = GateMovement.between_probes(START, probe(["1" * 10, "0" * 10] * 2))
    assert moved.mean == moved.start and moved.drift == 0
    assert (moved.moved, moved.changed) == (0.5, 0.5)
    assert moved.warning() is None


def test_a_gate_that_drifts_has_left_its_start() -> None:
    moved = GateMovement.between_probes(START, probe(["1100110011"] * 4))
    assert moved.drift == pytest.approx(0.1) and moved.moved == pytest.approx(0.1)
    assert moved.changed == pytest.approx(0.1) and moved.warning() is None
    # Of three pictures in class 0 and one in class 2 all are alike: no variance.
    assert (moved.between, moved.within) == (0, 0)
    row = moved.row()
    assert row["gate_drift"] == moved.drift and row["gate_changed"] == moved.changed


def test_other_pictures_are_not_compared() -> None:
    for other in (probe(["1100110010"] * 3), probe(["1100110010"] * 4, data="other")):
        with pytest.raises(ValueError, match="same pictures"):
            GateMovement.between_probes(START, other)


def test_what_is_kept_is_read_again_unless_it_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "start.npz"
    assert ProbeGates.read(path) is None
    START.write(path)
    found = ProbeGates.read(path)
    assert found is not None and found.same_gates(START)
    assert (found.bits == START.bits).all() and (found.labels == START.labels).all()
    whole = path.read_bytes()
    for damaged in (b"", b"x", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert ProbeGates.read(path) is None
    noticed = 0
    for place in range(0, len(whole), 11):  # times and the like may be anything
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        found = ProbeGates.read(path)
        noticed += found is None
        assert found is None or (found.same_gates(START) and (found.bits == START.bits).all())
    assert noticed > len(whole) / 33


@pytest.mark.slow
def test_validation_records_the_probe_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path / "pictures", tmp_path / "run")
    recipe = load_recipe([f"recipe={run / 'recipe.yaml'}"])
    model, prepared = load(run)[0], open_prepared(recipe)
    monkeypatch.setattr(gate_probe, "PROBE", 4)
    with join_world(recipe) as world:
        evaluator = Evaluator(recipe, prepared, resolve_preprocess(recipe), world)
        wanted = probe_gates(model, evaluator, "val")
        recording = ValidationProbe(model, evaluator)
        loader = evaluator.loader("val", 4)  # four pictures, then two
        assert loader.total == 6
        evaluate(model, loader, evaluator.settings, 2, recording.recorder)
        found = recording.complete()
    assert found.same_gates(wanted) and wanted.bits.shape[0] == 4
    assert (found.bits == wanted.bits).all() and (found.labels == wanted.labels).all()
    assert len(np.unique(wanted.bits, axis=0)) > 1, "the gates tell pictures apart"
    assert set(wanted.labels) == {0, 1}
