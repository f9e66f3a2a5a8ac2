"""Paired timings in one process: python -m launch.benchmark --suite=proxy [--rounds=9] [--format=json] [--check]

The two sides of a pair run in turn, A B A B …, so that a machine whose speed drifts slows both; the ratio is taken pair
by pair. JSON: a list of {name, ratio_median, ratio_min, ratio_max, rounds, bar} and what each side did a second.
--check exits with 1 where a median is over its bar.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable

from absl import flags

from experiments import proxy
from launch import cli
from moe.config import Config, from_config_dict
from moe.errors import UserError

SUITE = flags.DEFINE_enum('suite', 'proxy', ['proxy'], 'proxy: training steps of proxy.py:deepseek_moe beside dense.')
ROUNDS = flags.DEFINE_integer('rounds', 9, 'Pairs that are timed, after one that is not.')
CHECK = flags.DEFINE_bool('check', False, 'Exit with 1 where a median is over its bar.')
FORMAT = cli.format_flag()


def proxy_suite(rounds: int) -> list[dict]:
  """A training step of the DeepSeekMoE proxy over one of a dense model that activates as many parameters a token."""
  moe = from_config_dict(proxy.get_config('deepseek_moe'))
  rows = []
  for dtype in ('float32', 'bfloat16'):
    sides = {
      name: dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
      for name, config in (('deepseek_moe', moe), ('dense', dense_twin(moe)))
    }
    steps = [_train_step(config) for config in sides.values()]
    tokens = moe.data.batch_size * moe.data.seq_len
    rows.append(compare(f'train step, deepseek_moe over dense, {dtype}', *steps, rounds, tokens))
  return rows


def dense_twin(config: Config) -> Config:
  """The same model with a dense FFN of the activated width in every layer: shared and chosen experts side by side."""
  width = (config.moe.num_shared_experts + config.moe.experts_per_token) * config.moe.d_expert
  model = dataclasses.replace(config.model, num_dense_layers=config.model.num_layers, d_ff=width)
  return dataclasses.replace(config, model=model)


def compare(
  name: str, a: Callable[[], None], b: Callable[[], None], rounds: int, tokens: int, bar: float | None = None
) -> dict:
  """Times a and b (each waits for its own end) in turn, after one warm-up of both; the ratio is time a ÷ time b."""
  seconds = []
  for round_number in range(rounds + 1):
    pair = []
    for side in (a, b):
      began = time.perf_counter()
      side()
      pair.append(time.perf_counter() - began)
    if round_number:
      seconds.append(pair)
    print(f'{name}: round {round_number}/{rounds}', file=sys.stderr, flush=True)
  ratios = [first / second for first, second in seconds]
  return {
    'name': name,
    'ratio_median': statistics.median(ratios),
    'ratio_min': min(ratios),
    'ratio_max': max(ratios),
    'rounds': rounds,
    'bar': bar,
    'tokens_per_second_median': [tokens / statistics.median(side) for side in zip(*seconds, strict=True)],
  }


def table(rows: list[dict]) -> str:
  """The rows for people."""
  lines = [f'{"":<52}{"time ratio":>11}{"min–max":>14}{"bar":>6}{"tokens/s":>18}']
  for row in rows:
    spread = f'{row["ratio_min"]:.2f}–{row["ratio_max"]:.2f}'
    bar = '' if row['bar'] is None else f'{row["bar"]:.2f}'
    speeds = ' / '.join(f'{speed:,.0f}' for speed in row['tokens_per_second_median'])
    lines.append(f'{row["name"]:<52}{row["ratio_median"]:>11.2f}{spread:>14}{bar:>6}{speeds:>18}')
  return '\n'.join(lines)


def _train_step(config: Config) -> Callable[[], None]:
  """One training step after another on a fixed batch of ids whose frequencies fall like those of words."""
  import jax
  import numpy as np

  from moe.data.packing import Batch
  from moe.train_step import init_state, make_train_step

  shape = config.data.batch_size, config.data.seq_len
  frequencies_V = 1 / np.arange(1, config.model.vocab_size + 1)
  generator = np.random.default_rng(0)
  ids_BL = generator.choice(config.model.vocab_size, (shape[0], shape[1] + 1), p=frequencies_V / frequencies_V.sum())
  ids_BL = ids_BL.astype(np.int32)
  positions_BL = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  batch = Batch(ids_BL[:, :-1], ids_BL[:, 1:], positions_BL, np.ones(shape, np.int32), np.ones(shape, np.float32))
  step = jax.jit(make_train_step(config), donate_argnums=0)
  state = jax.jit(lambda: init_state(config))()

  def run():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  return run


def main(_):
  if ROUNDS.value < 1:
    raise UserError(f'--rounds={ROUNDS.value} must be at least 1')
  rows = {'proxy': proxy_suite}[SUITE.value](ROUNDS.value)
  print(json.dumps(rows, indent=2) if FORMAT.value == 'json' else table(rows))
  if CHECK.value and any(row['bar'] is not None and row['ratio_median'] > row['bar'] for row in rows):
    return 1


if __name__ == '__main__':
  cli.run(main)
