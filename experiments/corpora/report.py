"""Sizes, tokens and the xz rate of each domain, measured through the data path of training."""

import lzma
import tempfile
from collections.abc import Sequence

from experiments import base
from experiments.corpora.build import Built
from moe import config as moe_config
from moe.data import corpus
from moe.data.prepare import prepare
from moe.data.progress import Progress
from moe.data.store import HELD_OUT, TRAIN

_COLUMNS = ('documents', 'characters', 'bytes', 'tokens', 'held-out bytes', 'xz -9, bits/byte')


def data_sources(built: Built) -> str:
  """The value of data.sources that trains on the corpus, all domains with the same weight."""
  return ';'.join(f'{domain}={path}' for domain, path in built.files.items())


def measure(built: Built, vocab_size: int) -> dict[str, dict]:
  """Domain → its numbers. Tokens are those of a tokenizer of `vocab_size` pieces,
  trained on all domains as training does.

  UserError as from moe.data.prepare, such as for a domain without held-out documents.
  """
  config = base.get_config()
  config.model.vocab_size = vocab_size
  config.data.update(sources=data_sources(built), seq_len=8, batch_size=1)
  config = moe_config.from_config_dict(config)
  with tempfile.TemporaryDirectory(prefix='.measuring-', dir=built.directory) as room:
    splits = prepare(config, f'{room}/prepared').metadata['splits']
  rates = _xz_rates(
    config.data, sum(entry['bytes'] for entry in built.manifest['domains'].values())
  )
  return {
    domain: {
      'vocab_size': vocab_size,
      'tokens': splits[TRAIN][domain]['tokens'] + splits[HELD_OUT][domain]['tokens'],
      'held_out_documents': splits[HELD_OUT][domain]['documents'],
      'held_out_bytes': splits[HELD_OUT][domain]['bytes'],
      'xz_bits_per_byte': round(rates[domain], 3),
    }
    for domain in built.files
  }


def table(manifest: dict, measured: dict[str, dict]) -> str:
  """A Markdown table with one row for each domain and one for all."""
  rows = []
  for domain, entry in manifest['domains'].items():
    numbers = measured[domain]
    rows.append(
      [domain, entry['documents'], entry['characters'], entry['bytes'], numbers['tokens']]
    )
    rows[-1] += [numbers['held_out_bytes'], numbers['xz_bits_per_byte']]
  sums = [sum(row[column] for row in rows) for column in range(1, 6)]
  bits = sum(row[3] * row[6] for row in rows) / sums[2]
  lines = ['| domain | ' + ' | '.join(_COLUMNS) + ' |', '|---|' + '---:|' * len(_COLUMNS)]
  return '\n'.join([*lines, *map(_row, [*rows, ['all', *sums, bits]])])


def by_source(manifest: dict) -> str:
  """A Markdown table with one row for each source."""
  lines = ['| domain | source | documents | bytes | left out |', '|---|---|---:|---:|---|']
  for domain, entry in manifest['domains'].items():
    for source in entry['sources']:
      dropped = ', '.join(f'{count:,} {reason}' for reason, count in source['dropped'].items())
      lines.append(
        f'| {domain} | {source["name"]} | {source["documents"]:,} | '
        f'{source["bytes"]:,} | {dropped} |'
      )
  return '\n'.join(lines)


def _row(cells: Sequence) -> str:
  *numbers, rate = cells[1:]
  held_out, size = numbers[4], numbers[2]
  shown = [f'{number:,}' for number in numbers[:4]]
  return (
    '| '
    + ' | '.join([cells[0], *shown, f'{held_out:,} ({held_out / size:.1%})', f'{rate:.3f}'])
    + ' |'
  )


def _xz_rates(data, total):
  """Domain → bits a byte that `xz -9` needs for all its documents in one stream."""
  packers, sizes, packed = {}, {}, {}
  with Progress('compressing', total) as progress:
    for document in corpus.documents(data):
      domain, text = document.domain, document.text.encode()
      if domain not in packers:
        packers[domain] = lzma.LZMACompressor(preset=9)
      packed[domain] = packed.get(domain, 0) + len(packers[domain].compress(text))
      sizes[domain] = sizes.get(domain, 0) + len(text)
      progress.add(len(text))
  return {
    domain: 8 * (packed[domain] + len(packers[domain].flush())) / sizes[domain]
    for domain in packers
  }
