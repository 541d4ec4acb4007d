"""Bars of parts, and of counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adafilter_dist.report.page.blocks import Spec
from adafilter_dist.report.page.charts.styles import NAME_WIDTH, ROW, SERIES, cycled


def stacked(rows: Sequence[dict[str, Any]], names: Sequence[str], x: str, y: str) -> Spec:
    """Stacked horizontal bars: ``name``, ``part``, ``v`` and ``say``, a word on the whole bar."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    return {
        "data": {"values": list(rows)},
        "height": max(60, ROW * len(names)),
        "mark": {"type": "bar"},
        "encoding": {
            "y": {
                "field": "name",
                "type": "nominal",
                "title": y,
                "scale": {"domain": list(names), "padding": 0.15},
                "axis": {
                    "labelLimit": NAME_WIDTH,
                    "labelFontSize": 10,
                    "labelOverlap": True,
                    "ticks": False,
                },
            },
            "x": {
                "field": "v",
                "type": "quantitative",
                "title": x,
                "scale": {"domain": [0, 0.25]},
                "axis": {"tickCount": 5},
            },
            "color": {
                "field": "part",
                "type": "nominal",
                "scale": {"domain": parts, "range": list(SERIES[: len(parts)])},
                "legend": {"title": None, "orient": "top", "columns": 1},
            },
            "order": {"field": "o", "type": "quantitative"},
            "tooltip": [
                {"field": "name", "type": "nominal", "title": y},
                {"field": "part", "type": "nominal", "title": "variance"},
                {"field": "v", "type": "quantitative", "title": "of that", "format": ".4f"},
                {"field": "say", "type": "nominal", "title": "decides"},
            ],
        },
    }


def histogram(rows: Sequence[dict[str, Any]], x: str, y: str, groups: Sequence[str]) -> Spec:
    """Bars of counts: ``low``, ``high``, ``n`` and ``group``; shares on the x axis."""
    color: Spec = {"value": SERIES[0]}
    if len(groups) > 1:
        color = {
            "field": "group",
            "type": "nominal",
            "scale": {"domain": list(groups), "range": list(cycled(SERIES, len(groups)))},
            "legend": {"title": None, "orient": "top", "columns": 1},
        }
    axis = {"format": ".0%"}
    return {
        "data": {"values": list(rows)},
        "height": 220,
        "mark": {"type": "bar", "binSpacing": 1},
        "encoding": {
            "x": {
                "field": "low",
                "type": "quantitative",
                "bin": {"binned": True},
                "title": x,
                "scale": {"domain": [0, 1]},
                "axis": axis,
            },
            "x2": {"field": "high"},
            "y": {"field": "n", "type": "quantitative", "title": y, "stack": True},
            "color": color,
            "tooltip": [
                {"field": "low", "type": "quantitative", "title": "from", "format": ".0%"},
                {"field": "high", "type": "quantitative", "title": "to", "format": ".0%"},
                {"field": "n", "type": "quantitative", "title": y, "format": ",d"},
                *([{"field": "group", "type": "nominal"}] if len(groups) > 1 else []),
            ],
        },
    }
