"""Coloured cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adafilter_dist.report.page.blocks import Spec
from adafilter_dist.report.page.charts.styles import NAME_WIDTH, ROW


def heat_map(
    columns: dict[str, list[Any]],
    *,
    x: str,
    y: str,
    value: str,
    rows: Sequence[str],
    across: Sequence[str],
    domain: tuple[float, float],
    kind: str = "linear",
    extra: Sequence[tuple[str, str, str]] = (),
    row_height: int = ROW,
) -> Spec:
    """Coloured cells. ``columns`` holds x, y, v and extra columns, a value for each cell.

    ``rows`` and ``across`` are the names from top to bottom and from left to right; ``extra`` are
    (column, title, format) for the tooltip.
    """
    many = len(across) > 40
    return {
        "data": {"values": [columns]},
        "transform": [{"flatten": list(columns)}],
        "height": max(60, row_height * len(rows)),
        "mark": {"type": "rect"},
        "encoding": {
            "x": {
                "field": "x",
                "type": "nominal",
                "title": x,
                "scale": {"domain": list(across)},
                "axis": {
                    "labelAngle": -90 if len(across) > 4 else 0,
                    "labelFontSize": 9 if many else 11,
                    "labelLimit": 110,
                    "labelOverlap": True,
                    "orient": "bottom",
                    "ticks": False,
                },
            },
            "y": {
                "field": "y",
                "type": "nominal",
                "title": y,
                "scale": {"domain": list(rows)},
                "axis": {
                    "labelLimit": NAME_WIDTH,
                    "labelFontSize": 10,
                    "labelOverlap": True,
                    "ticks": False,
                },
            },
            "color": {
                "field": "v",
                "type": "quantitative",
                "scale": {"domain": list(domain), "scheme": "viridis", "type": kind},
                "legend": {
                    "title": value,
                    "orient": "top",
                    "format": ".0%",
                    "gradientLength": 160,
                    **({"values": [0, 0.05, 0.2, 0.5, 1]} if kind == "sqrt" else {"tickCount": 5}),
                },
            },
            "tooltip": [
                {"field": "y", "type": "nominal", "title": y},
                {"field": "x", "type": "nominal", "title": x},
                {"field": "v", "type": "quantitative", "title": value, "format": ".1%"},
                *(
                    {"field": field, "type": "quantitative", "title": title, "format": form}
                    for field, title, form in extra
                ),
            ],
        },
    }
