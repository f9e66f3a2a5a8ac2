"""Tokenises a corpus once into a directory that many runs can share.

python -m launch.prepare_data --config=experiments/quickstart.py --out=DIR
  [--config.data.sources=… …]
python -m launch.train --config=experiments/quickstart.py --config.data.dir=DIR
  [the same --config.data.…] …
"""

from absl import flags

from moe import cli
from moe.data.prepare import prepare
from moe.errors import UserError

CONFIG = cli.config_flag()
_OUT = flags.DEFINE_string('out', None, 'Directory to write; by default data.dir of the config.')


def main(argv):
  del argv
  config = cli.config(CONFIG)
  directory = _OUT.value or config.data.dir
  if not directory:
    raise UserError('--out=DIR is required, or --config.data.dir=DIR')
  tokenizer = None
  if config.train.init_from:
    from moe.warm_start import find  # which loads jax

    tokenizer = find.tokenizer(config, find.find(config), None)
  prepared = prepare(config, directory, tokenizer=tokenizer)
  print(f'{prepared.directory}: {prepared.tokenizer.vocab_size} pieces')
  print(
    f'{"split":<10}{"domain":<16}{"documents":>11}{"bytes":>15}{"tokens":>15}{"bytes/token":>13}'
  )
  for split, domains in prepared.metadata['splits'].items():
    for domain, totals in domains.items():
      documents, size, tokens = totals['documents'], totals['bytes'], totals['tokens']
      print(
        f'{split:<10}{domain:<16}{documents:>11,}{size:>15,}{tokens:>15,}{size / tokens:>13.2f}'
      )


if __name__ == '__main__':
  cli.run(main)
