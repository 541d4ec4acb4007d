"""Vega, Vega-Lite and vega-embed as one script, and how charts look on every page."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from adafilter_dist.system.cache_folder import cache_folder
from adafilter_dist.system.files import make_folder, write_text

_LETTERS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_QUIET = "var(--ink-2)"
CONFIG: dict[str, Any] = {
    "aria": False,  # the page names each chart as a whole, and has its numbers as a table
    "background": None,
    "font": _LETTERS,
    "view": {"stroke": None},
    "axis": {
        "labelColor": _QUIET,
        "titleColor": _QUIET,
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": _QUIET,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelLimit": 220,
        "symbolStrokeWidth": 2,
        "symbolSize": 160,
    },
}


def completed(spec: dict[str, Any]) -> dict[str, Any]:
    """A chart's specification with its look, as wide as its place on the page."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": 4,
        "config": CONFIG,
        **spec,
    }


def version() -> str:
    """vl-convert's version; ImportError where it is not installed."""
    return importlib.metadata.version("vl-convert-python")


def script() -> str:
    """The libraries' JavaScript, to stand between script tags; from the wheel of vl-convert.

    Putting them together takes a second, so the result is kept in the cache folder.
    """
    path = cache_folder() / "vega" / f"{version()}.js"
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    import vl_convert

    # Within a script nothing may look like its end.
    javascript: Callable[..., str] = vl_convert.javascript_bundle
    bundle = javascript().replace("</script", r"<\/script")
    with suppress(OSError):  # without a cache it takes a second each time
        make_folder(path.parent)
        write_text(path, bundle)
    return bundle
