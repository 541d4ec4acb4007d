"""``adafilter doctor`` where everything is installed, and where nothing is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from adafilter_dist.commands import doctor
from tests.launch.recorded import Cluster

CLONE = Path(__file__).parents[2]


def rows(text: str) -> dict[str, tuple[str, str]]:
    """Piece -> (state, what was found)."""
    table = {}
    for line in text.splitlines():
        if line.startswith("  "):
            table[line[11:25].strip()] = (line[2:10].strip(), line[26:])
    return table


def test_tells_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run([]) == 0
    table = rows(capsys.readouterr().out)
    assert table["torch"] == ("ok", torch.__version__)
    assert table["numpy"] == ("ok", numpy.__version__)
    assert table["cache"][0] == "ok"
    assert (table["GPUs"][0] == "ok") == torch.cuda.is_available()


def test_a_cache_folder_that_cannot_be_written_is_a_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADAFILTER_CACHE", str(tmp_path / "file" / "below"))
    assert doctor.run([]) == 0
    state, found = rows(capsys.readouterr().out)["cache"]
    assert state == "note"
    assert "ADAFILTER_CACHE" in found


def test_without_any_package_it_still_runs_and_names_what_to_install() -> None:
    # -S: no site-packages, so torch and all the others are really missing.
    done = subprocess.run(
        [sys.executable, "-S", "-m", "adafilter_dist", "doctor"],
        cwd=CLONE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    table = rows(done.stdout)
    assert table["torch"][0] == "missing"
    assert table["torch"][1].startswith("pip install torch torchvision")
    assert table["pyyaml"] == ("missing", "pip install pyyaml")
    assert table["ffcv"][0] == "absent"
    assert table["timm"][0] == "absent"
    assert table["Python"][0] == "ok"
    assert table["submitit"] == ("absent", "pip install submitit   (submitting to SLURM)")
    assert table["psutil"][0] == "absent"


@pytest.mark.parametrize(
    ("lines", "state", "found"),
    [
        (["echo slurm-wlm 22.05.8"], "ok", "slurm-wlm 22.05.8 ({path})"),
        (
            ["echo 'sbatch: error: a' >&2", "echo 'sbatch: fatal: b' >&2", "exit 1"],
            "note",
            "{path} knows of no cluster: sbatch: fatal: b",
        ),
        ([], "absent", "not on this machine: adafilter submit trains in its background"),
    ],
)
def test_whether_jobs_can_be_submitted_here(
    lines: list[str],
    state: str,
    found: str,
    tmp_path: Path,
    no_slurm: Cluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = no_slurm.folder / "sbatch"
    if lines:
        path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
        path.chmod(0o755)
    assert doctor.run([]) == 0
    assert rows(capsys.readouterr().out)["sbatch"] == (state, found.format(path=path))
