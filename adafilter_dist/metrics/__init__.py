"""What is measured while training, and where it goes: files, boards, lines on the console.

What is measured of a trained model is in `evaluate`.
"""

from adafilter_dist.metrics.metrics import Metrics
from adafilter_dist.system.json_lines import JsonLines, append, cut_after, read_lines

__all__ = ["JsonLines", "Metrics", "append", "cut_after", "read_lines"]
