"""One file per study: its claim, `sweep()` (its runs), and `analyse()`,
which turns their lines into its figure.

  python -m launch.sweep --sweep=experiments/studies/table1.py [--seeds=3] [--dry_run]
  python -m launch.report                                             # or `make report`

The first writes one line per finished run to experiments/results/STUDY/runs.jsonl, the only source
of every figure; the second draws the figures. A study's CLAIM is what the report gives a verdict
on: it says what the comparisons whose role is CLAIM test, and no more. Importing a study is light
(no jax). The studies share `common.py` (settings of the runs), `intervals.py` (statistics),
`verdicts.py` (the rule of the verdicts), `laws.py` (loss over compute) and `analysis.py` (what an
analysis gets and gives).
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
# Beyond the paper; they come after STUDIES in the report.
BEYOND = (
  'longer',
  'balancing',
  'routers',
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
# The pilots, which chose the studies' scales; last in the report.
PILOTS = ('pilot', 'pilot_long')
