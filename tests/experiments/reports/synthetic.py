"""Made-up lines with known numbers, as a finished sweep would write them."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.studies import STUDIES
from experiments.studies.common import PROXY
from experiments.sweeps import ledger, plan
from moe.accounting import account

# The shift that all runs of a seed share, far larger than the differences between models:
# only a paired difference removes it.
SEED = (0.0, 0.3, -0.2, 0.15, -0.25)
# Losses at which every claim holds, by config and evaluation; the paper's, where it gives them.
LOSS = {
  'dense': 2.060,
  'hash': 1.932,
  'switch': 1.881,
  'gshard': 1.867,
  'gshard_x1_2': 1.824,
  'gshard_x1_5': 1.808,
  'dense_x4': 1.908,
  'dense_x16': 1.806,
  'deepseek_moe': 1.808,
  'deepseek_moe_half': 1.84,
  'granularity_0_2_16': 1.867,
  'granularity_1_1_15': 1.85,
  'granularity_1_3_31': 1.83,
  'granularity_1_7_63': 1.808,
  'shared_1': 1.808,
  'shared_2': 1.806,
  'shared_4': 1.811,
  'alpha1_0.1': 1.9,
  **{
    f'dense_d{width}': loss
    for width, loss in zip(PROXY.widths['dense'], (2.3, 2.15, 2.06), strict=True)
  },
  **{
    f'deepseek_moe_d{width}': loss
    for width, loss in zip(PROXY.widths['deepseek_moe'], (2.06, 1.9, 1.808), strict=True)
  },
}
EVALUATION = {
  'deepseek_moe': {
    **{f'masked {share}/16': loss for share, loss in enumerate((7.5, 8.2, 8.7, 9.1), start=1)},
    **{f'{active} routed': loss for active, loss in zip(range(3, 7), (1.956, 1.868, 1.831, 1.814))},
    'shared off, 8 routed': 2.414,
  },
  'gshard_x1_5': {
    f'masked {share}/16': loss for share, loss in enumerate((5.6, 7.5, 7.6, 7.7), start=1)
  },
}
MAX_VIO = {'alpha1_0': 5.0, 'alpha1_0.001': 1.0, 'alpha1_0_alpha2_0.05': 3.0}  # others 0.5

Loss = Callable[[str, str, int], float]


def loss(run: str, evaluation: str, seed: int) -> float:
  """A loss of LOSS or EVALUATION, plus the seed's shift and a little noise, the same each time."""
  true = EVALUATION[run][evaluation] if evaluation else LOSS.get(run, 1.808)
  return true + SEED[seed] + random.Random(f'{run} {evaluation} {seed}').gauss(0.0, 0.0005)


def lines(study: str, of: Loss = loss, seeds: Sequence[int] = range(3)) -> list[dict]:
  """A line for every run and seed of a study."""
  jobs = plan.jobs(plan.load(f'experiments/studies/{study}.py'), PROXY, seeds, {}, Path('runs'))
  return [_line(study, job, run, of) for job in jobs for run in job.runs]


def write(results: Path, study: str, made: Sequence[dict]) -> None:
  for line in made:
    ledger.put(ledger.path(results, study), line)


def write_all(results: Path, seeds: Sequence[int] = range(3)) -> None:
  for study in STUDIES:
    write(results, study, lines(study, seeds=seeds))


def _line(study, job, run, of):
  counts = account(job.config)
  tokens = job.num_steps * job.config.data.batch_size * job.config.data.seq_len
  scored = lambda evaluation: {
    'total': {'loss': of(run.name, evaluation, job.seed), 'bits_per_byte': 2.0}
  }
  experts = job.config.moe.num_experts
  uneven = 0.3 if 'alpha2' in run.name else 0.9
  layer = [1 + uneven if expert < experts // 7 else 1 - uneven / 6 for expert in range(experts)]
  return {
    'study': study,
    'run': run.name,
    'seed': job.seed,
    'format': ledger.FORMAT,
    'config_hash': job.config_hash,
    'commit': '0123456789abcdef',
    'machine': {'cpu': 'a CPU | of a test', 'device': 'cpu (<none>)', 'jax': '0'},
    'tokens': tokens,
    'seconds': 360.0,
    'total_params': counts.total_params,
    'active_params': counts.active_params,
    'train_flops': counts.train_flops_per_token * tokens,
    'final': {'step': job.num_steps, **scored('')},
    'evaluations': {
      name: {'intervention': dict(intervention), **scored(name)}
      for name, intervention in run.evaluations.items()
    },
    'max_vio': {'final': 0.0, 'last_tenth': MAX_VIO.get(run.name, 0.5)} if experts else None,
    'dead_experts': 0,
    'idle_experts': 40 + 3 * job.seed if run.name == 'alpha1_0' else float(job.seed == 0),
    'expert_load': [layer, layer] if experts else None,
  }
