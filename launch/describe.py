"""Size and cost of a config, or of all of them, computed without a device.

  python -m launch.describe --config=experiments/scaling.py:deepseek_moe_16b [--config.KEY=VALUE] [--format=json]
  python -m launch.describe --all [--format=json]

Text is for reading; JSON has exact integers: one object, or with --all one object keyed `file:variant`.
`moe/accounting.py` defines every number.
"""

import dataclasses
import importlib
import json

from absl import flags

from moe import cli
from moe import config as moe_config
from moe.accounting import Accounting, account
from moe.errors import UserError

CONFIG = cli.config_flag()
FORMAT = cli.format_flag()
ALL = flags.DEFINE_bool('all', False, 'Describe every variant of every file of experiments/.')

FILES = ('validation', 'scaling', 'ablations', 'proxy', 'quickstart')

_ROWS = {
  'total_params': 'parameters',
  'active_params': '  a token activates',
  'expert_params': 'in experts and FFNs',
  'active_expert_params': '  a token activates',
  'non_embedding_params': 'without embedding and head',
  'active_non_embedding_params': '  a token activates',
  'train_flops_per_sequence': 'training FLOPs a sequence',
  'train_flops_per_token': 'training FLOPs a token',
  'forward_flops_per_token': 'forward FLOPs a token',
  'seq_len': 'tokens a sequence',
}


def everything() -> dict[str, Accounting]:
  """The accounting of every variant, keyed `file:variant`."""
  modules = {file: importlib.import_module(f'experiments.{file}') for file in FILES}
  return {
    f'{file}:{name}': account(moe_config.from_config_dict(module.get_config(name)))
    for file, module in modules.items()
    for name in module.VARIANTS
  }


def quantity(number: float) -> str:
  """1234567 → '1.235M'; four digits, in thousands (K), millions (M), billions (B) or trillions (T)."""
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'K')):
    if number >= size:
      return (
        f'{number / size:.{3 if number < 10 * size else 2 if number < 100 * size else 1}f}{unit}'
      )
  return str(number)


def table(accounts: dict[str, Accounting]) -> str:
  """One aligned line a config."""
  header = ['config', 'total', 'active', 'experts', 'active', 'FLOPs/sequence', 'seq_len']
  rows = [
    [
      name,
      *map(quantity, (a.total_params, a.active_params, a.expert_params, a.active_expert_params)),
      quantity(a.train_flops_per_sequence),
      str(a.seq_len),
    ]
    for name, a in accounts.items()
  ]
  widths = [max(map(len, column)) for column in zip(header, *rows)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths))
    )
    for row in [header, *rows]
  )


def card(name: str, numbers: Accounting) -> str:
  """One config, a line a number."""
  width = max(map(len, _ROWS.values()))
  number = lambda key: str(numbers.seq_len) if key == 'seq_len' else quantity(getattr(numbers, key))
  return '\n'.join(
    [name, *(f'  {label:<{width}}  {number(key):>8}' for key, label in _ROWS.items())]
  )


def main(_):
  if ALL.value and CONFIG.present:
    raise UserError('give either --config or --all, not both')
  if ALL.value:
    accounts = everything()
    output = {name: dataclasses.asdict(numbers) for name, numbers in accounts.items()}
    text = lambda: table(accounts)
  else:
    if not CONFIG.present:
      raise UserError('give --config=FILE.py[:VARIANT], or --all')
    config = cli.config(CONFIG)
    numbers = account(config)
    output = {'name': config.name} | dataclasses.asdict(numbers)
    text = lambda: card(config.name, numbers)
  print(json.dumps(output, indent=2) if FORMAT.value == 'json' else text())


if __name__ == '__main__':
  cli.run(main)
