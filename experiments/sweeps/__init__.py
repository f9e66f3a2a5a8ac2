"""What launch.sweep is made of: a study's jobs (plan), how they are run (local, slurm),
their lines (line, ledger).

Only `score` and `starts` import jax. The first is a program of its own, which a sweep starts for
every trained run; the second is imported where a run starts from one that is not trained yet.
"""
