"""What launch.sweep is made of: a study's jobs (plan), how they are run (local, slurm),
their lines (line, ledger).

Only `score` imports jax: it is a program of its own, which a sweep starts for every trained run.
"""
