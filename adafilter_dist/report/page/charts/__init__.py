"""Charts as Vega-Lite specifications, a kind a file; data for them come from the page's sections.

Colours are CSS variables, so that the page's theme holds. Field names are ours; names of classes,
layers and domains are values only, which Vega-Lite draws and shows as text.
"""

from adafilter_dist.report.page.charts.bars import histogram, stacked
from adafilter_dist.report.page.charts.cells import heat_map
from adafilter_dist.report.page.charts.lines import Series, curves, thinned
from adafilter_dist.report.page.charts.points import intervals, ranked
from adafilter_dist.report.page.charts.styles import ROW, ROW_OF_INTERVALS

__all__ = [
    "ROW",
    "ROW_OF_INTERVALS",
    "Series",
    "curves",
    "heat_map",
    "histogram",
    "intervals",
    "ranked",
    "stacked",
    "thinned",
]
