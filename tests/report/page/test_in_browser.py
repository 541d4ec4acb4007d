"""The pages in a real browser, from disk, on a wide screen and on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.__main__ import main
from adafilter_dist.run.files import RunFiles
from tests.report.page.browser import CUT_OFF, EMPTY, OpenPage, chromium
from tests.report.page.made_up import HOSTILE, made_up_run
from tests.shared.small_run import small_run

pytestmark = pytest.mark.slow

FIGURES = {
    *("accuracy-chart", "class-accuracy", "confusion", "loss", "accuracy-curve", "gate-curve"),
    *("rate", "speed", "wait", "gates-by-class", "gates-by-domain", "gate-variance", "reuse"),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a made-up run, of a real one with pictures, and of two runs."""
    place = tmp_path_factory.mktemp("runs")
    one = made_up_run(place / "one")
    words = ["method=finetune", "optim.lr=0.02"]
    other = made_up_run(place / "other", words=words, accuracy=0.55, seed=1)
    real = small_run(tmp_path_factory.mktemp("pictures"), place / "real")
    assert main(["evaluate", str(real)]) == 0
    for run in (one, real):
        assert main(["report", str(run)]) == 0
    compared = place / "compared.html"
    assert main(["report", str(other), str(one), "--out", str(compared)]) == 0
    return {"one": RunFiles(one).page, "real": RunFiles(real).page, "compared": compared}


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("name", ["one", "real", "compared"])
def test_all_is_drawn_and_nothing_is_cut_off(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    scheme = "dark" if width == 375 else "light"
    shown = OpenPage(browser, pages[name], width, color_scheme=scheme)
    assert shown.faults == []
    assert [url for url in shown.requests if not url.startswith(("file:", "data:"))] == []
    figures = shown.ask("[...document.querySelectorAll('figure')].map((each) => each.id)")
    assert len(figures) == len(set(figures)) >= 5
    if name == "one":
        assert set(figures) == FIGURES
    assert shown.ask(EMPTY) == []
    assert shown.ask(CUT_OFF) == []
    # Names of classes are texts, whatever is in them.
    assert shown.ask("window.hacked") is None
    if name == "one":
        text = shown.ask("document.body.innerText")
        assert all(each in text for each in HOSTILE[:5])
        svg = shown.ask("document.querySelector('#class-accuracy svg').textContent")
        assert HOSTILE[0][:10] in svg
    shown.close()


def test_pictures_are_decoded_when_they_are_seen(browser: Any, pages: dict[str, Path]) -> None:
    shown = OpenPage(browser, pages["real"], 1440)
    pictures = shown.page.locator("#reuse-most img, #surely-wrong img")
    assert pictures.count() > 3
    lazy = "(all) => all.every((each) => each.loading === 'lazy' && each.decoding === 'async')"
    assert pictures.evaluate_all(lazy)
    # Each is the picture that its lines are about: its folder is its class.
    shown_with = "(all) => all.map((each) => [each.title, each.alt])"
    for path, lines in pictures.evaluate_all(shown_with):
        assert f"is {Path(path).parent.name}" in re.split(", ", lines), (path, lines)
    pictures.last.scroll_into_view_if_needed()
    shown.page.wait_for_function(
        "() => [...document.querySelectorAll('#reuse-most img')].some((e) => e.naturalWidth > 8)"
    )
    shown.close()


def test_tables_sort_and_unfold_by_the_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    shown = OpenPage(browser, pages["one"], 1440)

    def column(number: int) -> list[str]:
        cells = f"#class-table tbody tr:not([hidden]) td:nth-child({number})"
        return list(shown.page.locator(cells).all_inner_texts())

    shares = [float(text.split()[0]) for text in column(2)]
    assert len(shares) == len(HOSTILE) and shares == sorted(shares)
    heads = shown.page.locator("#class-table th button")
    heads.nth(1).focus()
    shown.page.keyboard.press("Enter")
    assert [float(text.split()[0]) for text in column(2)] == sorted(shares, reverse=True)
    assert shown.page.locator("#class-table th").nth(1).get_attribute("aria-sort") == "descending"
    shown.page.keyboard.press("Enter")
    assert [float(text.split()[0]) for text in column(2)] == shares
    heads.first.press(" ")
    names = column(1)
    assert set(names) == set(HOSTILE)
    assert names == shown.ask("(all) => all.sort((a, b) => a.localeCompare(b, 'en'))", names)

    # Rows beyond the first are a key away.
    rows = shown.page.locator("#confusions tbody tr:not([hidden])")
    few = rows.count()
    shown.page.locator("#confusions").locator("xpath=../following-sibling::button").press("Enter")
    assert few == 12 < rows.count()
    shown.close()


def test_values_are_shown_under_the_pointer(browser: Any, pages: dict[str, Path]) -> None:
    shown = OpenPage(browser, pages["one"], 1440)
    cells = shown.page.locator("#gates-by-class svg .mark-rect.role-mark path")
    assert cells.count() == 6 * len(HOSTILE)
    cells.first.hover()
    tooltip = shown.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    text = tooltip.inner_text()
    assert "layer1.0.conv1" in text and "fine-tuned filters" in text and "%" in text
    assert shown.ask("window.hacked") is None
    shown.close()


def test_the_theme_changes_charts_too_and_paper_is_light(
    browser: Any, pages: dict[str, Path]
) -> None:
    shown = OpenPage(browser, pages["one"], 1440, color_scheme="light")

    def look() -> list[str]:
        label = "getComputedStyle(document.querySelector('#loss svg text')).fill"
        return [str(shown.ask("getComputedStyle(document.body).backgroundColor")), shown.ask(label)]

    light = look()
    button = shown.page.locator("#theme")
    button.press("Enter")
    assert button.inner_text() == "Theme: light" and look() == light
    button.press("Enter")
    dark = look()
    assert button.inner_text() == "Theme: dark"
    assert dark[0] != light[0] and dark[1] != light[1]
    shown.page.emulate_media(media="print")
    assert look()[0] == "rgb(255, 255, 255)" and look()[1] != dark[1]
    shown.close()
