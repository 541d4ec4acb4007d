"""The end of a run: what it measured, told on the console, in a file and in a picture."""

from adafilter_dist.report.figure import draw
from adafilter_dist.report.results import Results
from adafilter_dist.report.summary import print_summary, write_gates, write_summary

__all__ = ["Results", "draw", "print_summary", "write_gates", "write_summary"]
