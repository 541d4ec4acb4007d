"""Submit a run to SLURM: ``python launch/submit.py recipe=food101``; ``--help`` says more."""

import sys
from pathlib import Path

# The clone that this file lies in, whether it is installed or not. The job runs a copy of it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adafilter_dist.commands.submit import run
from adafilter_dist.system.exit_code import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:], program="python launch/submit.py")))
