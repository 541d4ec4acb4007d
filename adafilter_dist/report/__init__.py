"""What a run measured, as tables on the console, files and figures.

Measuring is in `evaluate`; lines during training are in `metrics`.
"""

from adafilter_dist.report.figure import draw
from adafilter_dist.report.results import Results
from adafilter_dist.report.summary import print_summary, write_gates, write_summary

__all__ = ["Results", "draw", "print_summary", "write_gates", "write_summary"]
