"""One file a study: the claim it tests, `sweep()` (its runs), and the analysis that turns their lines into its figure.

  python -m launch.sweep --sweep=experiments/studies/table1.py [--seeds=3] [--dry_run]

writes a line a finished run to experiments/results/STUDY/runs.jsonl, the only source of every figure. Importing a study
is light (no jax): what its analysis needs is imported inside functions. `common.py` has what all studies share.
"""
