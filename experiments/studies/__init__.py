"""One file a study: its claim, `sweep()` (its runs), and `analyse()`,
which turns their lines into its figure.

  python -m launch.sweep --sweep=experiments/studies/table1.py [--seeds=3] [--dry_run]
  python -m launch.report                                             # or `make report`

The first writes a line a finished run to experiments/results/STUDY/runs.jsonl, the only source of
every figure; the second draws them. The first paragraph of a study's docstring is the claim that
the report gives a verdict on: it says what the comparisons whose role is CLAIM test, and no more.
Importing a study is light (no jax). What all share: `common.py` (settings of the runs),
`intervals.py` (statistics), `verdicts.py` (the rule of the verdicts), `laws.py` (of loss over
compute), `analysis.py` (what an analysis gets and gives).
"""

# In the order of the report.
STUDIES = (
  'table1',
  'larger',
  'granularity',
  'shared_ratio',
  'disable_top',
  'shared_off',
  'fewer_active',
  'half_active',
  'balance',
  'scaling',
)
# Not of the paper; after those in the report.
BEYOND = (
  'longer',
  'balancing',
  'shared_gate',
  'adaptive_k',
  'unequal_experts',
  'coarse_shared',
  'attention_share',
  'specialisation',
  'upcycling',
  'sft',
  'esft',
)
# What the studies' scales were chosen by; last in the report.
PILOTS = ('pilot', 'pilot_long')
