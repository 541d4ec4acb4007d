"""The version is the same wherever it is written by hand."""

from __future__ import annotations

from pathlib import Path

import yaml

from adafilter_dist import __version__

CLONE = Path(__file__).parent.parent


def test_the_citation_and_the_changelog_name_this_version_and_its_day() -> None:
    citation = yaml.safe_load((CLONE / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    heading = f"## {__version__} - {citation['date-released']}"
    assert heading in (CLONE / "CHANGELOG.md").read_text().splitlines()
