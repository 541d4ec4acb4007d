"""What is measured while training, and where it goes: files, boards, lines on the console.

What is measured of a trained model is in `evaluate`.
"""

from adafilter_dist.metrics.jsonl import JsonLines, append, cut_after, read_lines
from adafilter_dist.metrics.metrics import Metrics

__all__ = ["JsonLines", "Metrics", "append", "cut_after", "read_lines"]
