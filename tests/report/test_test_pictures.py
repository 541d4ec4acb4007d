"""What a run keeps of each test picture beside its prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adafilter_dist.data.stored.prepared import Domains
from adafilter_dist.evaluate.gate_choices import GateChoices
from adafilter_dist.report.test_pictures import TestPictures, read_test_pictures
from adafilter_dist.run.files import RunFiles


def test_choices_are_counted_by_layer() -> None:
    draw = np.random.default_rng(0)
    gates = draw.random((1500, 300 + 7 + 64)) < 0.4
    found = GateChoices.of(np.packbits(gates, axis=1), ["a", "b", "c"], [300, 7, 64])
    assert found.fine_tuned.tolist() == [
        [row[:300].sum(), row[300:307].sum(), row[307:].sum()] for row in gates
    ]
    assert np.allclose(found.shares()[:, 1], gates[:, 300:307].mean(axis=1))
    assert np.allclose(found.reuse(), 1 - gates.mean(axis=1))


def test_what_is_kept_is_read_back_and_damage_is_nothing(tmp_path: Path) -> None:
    gates = GateChoices(["stem", "l<1>"], np.array([4, 9]), np.array([[1, 9], [4, 0]], np.uint16))
    sure = np.array([0.5, 0.25], np.float32)
    TestPictures("f00", sure, gates, Domains(["near", "é"], np.array([1, 0]))).write(tmp_path)
    kept = read_test_pictures(tmp_path)
    assert kept is not None and kept.gates is not None and kept.domains is not None
    assert (kept.data, kept.confidences.tolist()) == ("f00", [0.5, 0.25])
    assert kept.gates.layers == ["stem", "l<1>"] and kept.gates.filters.tolist() == [4, 9]
    assert kept.gates.fine_tuned.tolist() == [[1, 9], [4, 0]]
    assert list(kept.domains.names) == ["near", "é"] and kept.domains.numbers.tolist() == [1, 0]

    TestPictures("f00", sure).write(tmp_path)
    kept = read_test_pictures(tmp_path)
    assert kept is not None and kept.gates is None and kept.domains is None
    path = RunFiles(tmp_path).test_pictures
    path.write_bytes(path.read_bytes()[:-30])
    assert read_test_pictures(tmp_path) is None
    assert read_test_pictures(tmp_path / "none") is None
