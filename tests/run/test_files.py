"""One module knows what lies in a run folder."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from adafilter_dist.run.files import PARTS, RunFiles, new_event

PACKAGE = Path(__file__).parents[2] / "adafilter_dist"
NAMES = {name for name in PARTS if "*" not in name} - {
    "tensorboard",
    "wandb",
    "compact",
    "code",
    "export",
}
# Other folders that hold a file of such a name: a job's recipe, torch's cache, figures in general.
ELSEWHERE = {
    ("launch/target.py", "recipe.yaml"),
    ("launch/target.py", "jobs"),
    ("launch/submit.py", "jobs"),
    ("compare/arrays.py", "jobs"),
    ("launch/script.py", "jobs"),
    ("models/backbone/zoo/torchvision_zoo.py", "checkpoints"),
    ("commands/doctor.py", "figures"),
    ("evaluate/gates.py", "figures"),
    ("report/page/gates.py", "figures"),
    ("report/page/comparison.py", "figures"),
    ("report/page/recipe_tables.py", "attempts"),
}


def test_no_other_module_spells_its_names() -> None:
    spelled = {
        (path.relative_to(PACKAGE).as_posix(), node.value)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in NAMES
    }
    others = {each for each in spelled if each[0] != "run/files.py"}
    assert others == ELSEWHERE


def test_the_folder_is_read_without_torch() -> None:
    modules = sorted(path.stem for path in (PACKAGE / "run").glob("[a-z]*.py"))
    code = "; ".join(f"import adafilter_dist.run.{name}" for name in modules)
    code += "; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
def test_what_is_missing_or_damaged_is_empty_and_told_of(
    tmp_path: Path, content: bytes | None
) -> None:
    files, problems = RunFiles(tmp_path), list[str]()
    if content is not None:
        files.attempt(1).folder.mkdir(parents=True)
        for path in (files.status, files.attempt(1).ended, files.attempt(1).owner):
            path.write_bytes(content)
    assert files.read_status(problems) == {}
    assert problems == ([] if content is None else ["status.json is damaged"])
    assert files.attempt(1).read_end() == files.attempt(1).read_owner() == {}
    assert files.attempt(1).read_failures() == [] and not files.attempt(1).has_failures()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files, problems = RunFiles(tmp_path), list[str]()
    files.write_status({"state": "running", "step": 3})
    files.note_state(files.read_status(), "queued", "preempted")
    status = files.read_status(problems)
    assert status.pop("heartbeat") > 0
    assert status == {"state": "queued", "step": 3, "reason": "preempted"}
    files.add_event(new_event("start", step=0))
    files.add_event(new_event("stopped", step=4))
    with files.events.open("ab") as file:
        file.write(b'{"kind": "fini')
    assert [event["kind"] for event in files.read_events()] == ["start", "stopped"]
    assert files.read_events(problems) == files.read_events()
    assert problems == ["events.jsonl has 1 torn line"]
    files.attempt(2).folder.mkdir(parents=True)
    files.attempt(2).write_end("stopped", "SIGTERM", 4)
    files.attempt(2).write_failure(1, {"rank": 1})
    assert files.attempt(2).read_end() == {"state": "stopped", "reason": "SIGTERM", "step": 4}
    assert files.attempt(2).read_failures() == [{"rank": 1}] and files.attempt(2).has_failures()
    assert files.marks() == 2
