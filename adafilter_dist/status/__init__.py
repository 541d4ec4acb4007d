"""How runs stand, read from their folders and, where it can be asked, from SLURM.

Imports no torch and changes nothing.
"""

from adafilter_dist.status.find import find_runs, is_run
from adafilter_dist.status.model import RunStatus
from adafilter_dist.status.read import read_run
from adafilter_dist.status.slurm import read_runs

__all__ = ["RunStatus", "find_runs", "is_run", "read_run", "read_runs"]
