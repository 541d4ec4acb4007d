"""The pages as a site: all are there, formulas are drawn, and wrong links fail the build."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

CLONE = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_docs", CLONE / "tools" / "build_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copied(folder: Path) -> Path:
    """The repository with pages of its own: all else are links."""
    folder.mkdir()
    for path in CLONE.iterdir():
        if path.suffix == ".md":
            shutil.copy(path, folder)
        elif path.name == "docs":
            shutil.copytree(path, folder / "docs")
        elif not path.name.startswith((".", "build", "runs", "data")):
            (folder / path.name).symlink_to(path)
    return folder


def test_every_page_is_in_the_menu() -> None:
    settings = tomllib.loads((CLONE / "docs" / "zensical.toml").read_text())
    entries = [page for part in settings["project"]["nav"] for page in part.values()]
    menu = {page for entry in entries for page in (entry if isinstance(entry, list) else [entry])}
    pages = {f"docs/{page.name}" for page in (CLONE / "docs").glob("*.md")}
    assert menu == {"index.md", "CONTRIBUTING.md", "CHANGELOG.md"} | pages


@pytest.mark.slow
def test_the_site_is_whole_and_needs_no_network(tool: ModuleType, tmp_path: Path) -> None:
    site = tool.build(CLONE, tmp_path / "build")
    texts = {page: page.read_text() for page in site.rglob("*.html")}
    for page in (CLONE / "docs").glob("*.md"):
        assert site / "docs" / f"{page.stem}.html" in texts
    assert 'href="docs/keys.html"' in texts[site / "index.html"]
    # What pages link to is there, to be read: files and folders of the repository.
    assert "def build_finetune" in re.sub(
        r"<[^>]*>", "", texts[site / "adafilter_dist" / "methods" / "finetune.py.html"]
    )
    assert "food101.yaml" in texts[site / "recipes" / "index.html"]
    found = json.loads((site / "search.json").read_text())
    assert "method.gate.contrast" in json.dumps(found)
    # Nothing is fetched from elsewhere, and no formula is left as it was typed.
    for page, text in texts.items():
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//[^\"]*", text)
        fetched += re.findall(r"<link[^>]*stylesheet[^>]*href=\"(?:https?:)?//[^\"]*", text)
        assert fetched == [] and "arithmatex" not in text and "<merror" not in text, page
    assert texts[site / "docs" / "method.html"].count("<math") > 5


@pytest.mark.slow
def test_links_that_lead_nowhere_fail(tool: ModuleType, tmp_path: Path) -> None:
    root = copied(tmp_path / "clone")
    with (root / "docs" / "data.md").open("a") as page:
        page.write("\nMore is [here](nowhere.md), and [there](running.md#nowhere).\n")
    with pytest.raises(tool.BrokenPages) as broken:
        tool.build(root, tmp_path / "build")
    report = str(broken.value)
    assert "page does not exist" in report and "anchor does not exist" in report
    assert report.count("docs/data.md") == 2 and "2 issues" in report and "Traceback" not in report
