"""What SLURM is asked and told: the queue, jobs, the names in its paths.

Who submits and requeues runs is in `launch`.
"""
