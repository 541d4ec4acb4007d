"""What a dry run of a comparison finds out before there are data."""

from __future__ import annotations

from pathlib import Path

import pytest

from adafilter_dist.__main__ import main


@pytest.mark.slow
def test_a_method_that_cannot_take_the_network_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recipe=demo", f"data.prepared={tmp_path / 'none'}", "tune=2", "--dry-run"]
    words.append(f"compare_dir={tmp_path / 'compared'}")
    assert main(["compare", *words, "methods=finetune,spottune"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: spottune: method=spottune: efficientnet_lite0 has no residual blocks" in line
    # The classifier of the weights, which co_tuning trains along, is not missed.
    assert main(["compare", *words, "methods=finetune,co_tuning"]) == 0
    assert "disk    unknown before the data are prepared" in capsys.readouterr().out
    assert not (tmp_path / "compared").exists()
