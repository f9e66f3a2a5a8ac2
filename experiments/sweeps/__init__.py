"""The parts of launch.sweep: a study's jobs (plan), how they are run (local, slurm, gke),
their lines (line, ledger).

Only `score`, with `measures` and `transfer`, and `starts` import jax. The first is a program of its
own, which a sweep starts for every trained run; the last is imported only if a run starts from one
that is not trained yet.
"""
