"""What SLURM is asked and told: the queue, jobs, its variables, the CPUs of a rank.

Who submits and requeues runs is in `launch`.
"""
