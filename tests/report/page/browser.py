"""A headless Chromium that opens pages from disk, and what is wrong with them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
READY = "document.documentElement.dataset.ready === 'true'"


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser of the system; the test is skipped, and says what is missing, where none is."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("the pages are opened in Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync_api.sync_playwright() as playwright:
        # The tests may be run by root, for whom Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class OpenPage:
    """A page from disk in a window of its own; whatever it asks of the network is noted."""

    def __init__(self, browser: Any, path: Path, width: int, **settings: Any) -> None:
        size = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=size, **settings)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.absolute().as_uri())
        self.page.wait_for_function(READY)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def ask(self, script: str, *arguments: Any) -> Any:
        """The value of a JavaScript expression, or of a function of the arguments."""
        return self.page.evaluate(script, *arguments)

    def close(self) -> None:
        """Close the window."""
        self.context.close()


EMPTY = """() => [...document.querySelectorAll('figure')].filter((figure) => {
  const marks = figure.querySelectorAll('svg .mark-rect path, svg .mark-line path, '
    + 'svg .mark-symbol path, svg .mark-rule line');
  return ![...marks].some((mark) => {
    const box = mark.getBoundingClientRect();
    const role = mark.closest('.role-mark');
    return role && (box.width > 0 || box.height > 0);
  });
}).map((figure) => figure.id)"""
"""Figures in which nothing is drawn."""

CUT_OFF = """() => {
  const cut = [];
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) cut.push(`the page is ${wide} px wide`);
  for (const svg of document.querySelectorAll('.chart svg')) {
    const frame = svg.getBoundingClientRect();
    const place = svg.closest('figure').getBoundingClientRect();
    const id = svg.closest('figure').id;
    if (frame.right > place.right + 1 || frame.left < place.left - 1) cut.push(`${id} sticks out`);
    for (const text of svg.querySelectorAll('text')) {
      const box = text.getBoundingClientRect();
      if (!text.textContent || text.closest('[opacity="0"]') || box.width === 0) continue;
      if (box.left < frame.left - 1 || box.right > frame.right + 1
          || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        cut.push(`${id}: ${text.textContent}`);
    }
  }
  for (const each of document.querySelectorAll('h1, h2, h3, p, dd, dt, summary, button, img')) {
    if (each.closest('.scroll, nav')) continue;
    const box = each.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 1 || box.left < -1)
        && !each.classList.contains('skip')) cut.push(`${each.tagName}: ${each.textContent}`);
  }
  return cut;
}"""
"""What sticks out of its place, or of the page."""
