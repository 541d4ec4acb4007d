"""One process that trains: the attempt, the session, the loop and its step.

How jobs are started and come back is in `launch`, how a step runs on ranks in `engine`.
"""
