"""Size and cost of a config, or of all of them, computed without a device; or what every key means.

  python -m launch.describe --config=experiments/scaling.py:deepseek_moe_16b
    [--config.KEY=VALUE] [--format=json]
  python -m launch.describe --all [--format=json]
  python -m launch.describe --keys > docs/configuration.md

Text is for reading; JSON has exact integers: one object, or with --all one object keyed
`FILE:VARIANT`. `moe/accounting.py` defines every number, `moe/finetune/cost.py` those of training,
`moe/config.py` every key.
"""

import dataclasses
import json

from absl import flags

from experiments import shipped
from moe import accounting_tables, cli
from moe import config as moe_config
from moe.accounting import account
from moe.config_page import page
from moe.errors import UserError

CONFIG = cli.config_flag()
FORMAT = cli.format_flag()
ALL = flags.DEFINE_bool('all', False, 'Describe every variant of every config in experiments/.')
KEYS = flags.DEFINE_bool('keys', False, 'Print what every key means, as Markdown.')


def main(_):
  if sum((ALL.value, CONFIG.present, KEYS.value)) != 1:
    raise UserError('give one of --config=FILE.py[:VARIANT], --all and --keys')
  if KEYS.value:
    print(page(), end='')
  elif ALL.value:
    configs = shipped.configs().items()
    accounts = {name: account(moe_config.from_config_dict(each)) for name, each in configs}
    output = {name: dataclasses.asdict(numbers) for name, numbers in accounts.items()}
    _print(accounting_tables.table(accounts), output)
  else:
    config = cli.config(CONFIG)
    from moe.finetune.cost import cost

    numbers, training = account(config), cost(config)
    output = {'name': config.name} | dataclasses.asdict(numbers) | training._asdict()
    _print(accounting_tables.card(config.name, numbers, training), output)


def _print(text, output):
  print(json.dumps(output, indent=2) if FORMAT.value == 'json' else text)


if __name__ == '__main__':
  cli.run(main)
