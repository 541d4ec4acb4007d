"""The tour of the code names files that exist, every folder of the package, and the true order."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

CLONE = Path(__file__).parent.parent
PACKAGE = CLONE / "adafilter_dist"
TOUR = (CLONE / "docs" / "architecture.md").read_text()
PAGES = ("README.md", "CONTRIBUTING.md", "docs/architecture.md")
LAYERS = tomllib.loads((CLONE / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][
    0
]["layers"]

_SUFFIX = r"\.(?:py|c|cpp|sh|md|toml|yaml|sbatch|txt)"
_FILE = re.compile(rf"(?<![\w./:~-])(?:[\w.-]+/)*\w[\w-]*{_SUFFIX}\b")
_FOLDER = re.compile(r"`((?:[a-z_]+/)+[a-z_]+/?|[a-z_]+/)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)[^)]*\)")
# Of a run, of prepared data or of the reader's own.
_NOT_OURS = {"data.csv", "path/to/mine.yaml", "gates.txt", "recipe.yaml"}


def paths(page: str) -> set[str]:
    """The files, folders and links of a page that stand for something in the clone."""
    text = (CLONE / page).read_text().replace("\\_", "_")
    names = {*_FILE.findall(text), *_FOLDER.findall(text)}
    return {name.rstrip("/") for name in names} - _NOT_OURS


def exists(name: str, page: str) -> bool:
    bases = (CLONE, PACKAGE, (CLONE / page).parent)
    recipe = CLONE / "recipes" / f"{name}.yaml"  # as recipe=FOLDER/NAME has it
    return recipe.exists() or any((base / name).exists() for base in bases)


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_is_named_exists(page: str) -> None:
    named = paths(page)
    assert len(named) >= 8
    assert [name for name in sorted(named) if not exists(name, page)] == []


def test_every_path_in_the_other_pages_exists() -> None:
    text = "\n".join(page.read_text() for page in CLONE.glob("docs/*.md"))
    tops = "adafilter_dist|benchmarks|examples|tests|tools"
    named = set(re.findall(rf"(?<![\w./])(?:{tops})/[\w./-]*\w(?![\w.-]*<)", text))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (CLONE / name).exists()] == []


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in CLONE.glob("docs/*.md"))]
)
def test_every_link_leads_to_a_file(page: str) -> None:
    text = (CLONE / page).read_text()
    links = [link for link in _LINK.findall(text) if link]
    assert [link for link in links if not ((CLONE / page).parent / link).exists()] == []


def test_the_text_of_a_link_is_the_file_it_leads_to() -> None:
    links = re.findall(r"\[([^\]]+)\]\(\.\./adafilter_dist/([^)]+)\)", TOUR)
    assert len(links) > 20
    assert [(text, link) for text, link in links if text.replace("\\", "") != link] == []


def test_names_that_stand_before_a_file_are_in_it() -> None:
    """As in "`decide_requeue` in [launch/requeue.py](...)"."""
    named = re.findall(r"`(\w+)` (?:of|in) \[[^\]]+\]\(\.\./(adafilter_dist/[^)]+)\)", TOUR)
    assert len(named) >= 8
    for name, file in named:
        assert re.search(rf"\b{name}\b", (CLONE / file).read_text()), (name, file)


def rows() -> list[str]:
    """The first cells of the tables of folders, in order."""
    section = TOUR.split("## The folders")[1].split("\n## ")[0]
    return re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)


def test_every_folder_of_the_package_has_its_line() -> None:
    listed = [name for row in rows() for name in re.findall(r"`([^`]+)`", row)]
    folders = {p.parent.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("__init__.py")}
    assert sorted(listed) == sorted(set(listed))
    assert folders - {"."} <= set(listed)


def test_the_folders_are_in_the_order_that_is_checked() -> None:
    top = [re.sub(r"\.py|`", "", row).split(", ") for row in rows()][: len(LAYERS)]
    assert top == [layer.split(" | ") for layer in LAYERS]


def test_contributing_says_that_order_too() -> None:
    text = (CLONE / "CONTRIBUTING.md").read_text()
    order = re.search(r"`__main__` ->[^.]*?`version`", text)
    assert order is not None
    steps = " ".join(order[0].replace("`", "").split()).split(" -> ")
    assert [step.split(", ") for step in steps] == [layer.split(" | ") for layer in LAYERS]


def test_readme_leads_to_the_tour() -> None:
    assert "(docs/architecture.md)" in (CLONE / "README.md").read_text()


def test_readme_names_every_room() -> None:
    table = (CLONE / "README.md").read_text().split("## Where things are")[1]
    cells = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    named = {
        name.removeprefix("adafilter_dist/") for c in cells for name in re.findall("`(.*?)`", c)
    }
    assert [
        n for n in sorted(named) if not any((base / n).is_dir() for base in (PACKAGE, CLONE))
    ] == []
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} <= named
