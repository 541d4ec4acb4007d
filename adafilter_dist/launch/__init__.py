"""Runs as jobs: submitting them, on SLURM or on this machine, and bringing them back.

Nothing is imported here, so that what needs no torch stays quick. How jobs and runs stand is in
`status`, what SLURM is asked in `slurm`.
"""
