"""What decides the contents of prepared data: text, tokenizer and how rows are read."""

import os

from moe.config import DataConfig
from moe.data import corpus
from moe.data.chat import templates
from moe.data.tokenizers import Tokenizer, open_tokenizer
from moe.errors import UserError


def settings(
  data: DataConfig,
  vocab_size: int,
  stored: dict | None = None,
  given: Tokenizer | None = None,
) -> dict:
  """What decides the contents of prepared data, as JSON.
  Weights do not, nor does the way sequences are made.

  `stored`: the metadata of a complete directory. Sources whose files are gone keep the fingerprints
  in it, since prepared data needs no corpus beside it. So do sources whose files have unchanged
  paths, sizes and times: they are not read again.
  `given`: the tokenizer to use where data.tokenizer names none; see `prepare`.
  """
  held_out = {'holdout': data.holdout}
  if data.validation_sources:
    held_out = {
      'validation_sources': _fingerprints(
        data.validation_sources, 'data.validation_sources', stored
      )
    }
  tokenizer = {
    'tokenizer': 'trained',
    'vocab_size': vocab_size,
    'tokenizer_sample_mb': data.tokenizer_sample_mb,
  }
  existing = existing_tokenizer(data, vocab_size, given)
  if existing:
    tokenizer = {'tokenizer': f'sha256 {existing.sha256[:16]}'}
  # Only where they are used: older prepared data does not have these keys.
  reading = {'separator': data.separator} if data.separator else {}
  if data.bad_rows != 'refuse':
    reading |= {'bad_rows': data.bad_rows, 'max_document_mb': data.max_document_mb}
  if data.format == 'chat':
    template = templates.identity(data.chat_template, existing)
    reading |= {'format': data.format, 'chat_template': template}
  sources = _fingerprints(data.sources, 'data.sources', stored)
  return {'sources': sources, **held_out, 'text_key': data.text_key, **reading, **tokenizer}


def _fingerprints(spec, key, stored):
  name = key.removeprefix('data.')
  known = ((stored or {}).get('settings') or {}).get(name)
  stamps = ((stored or {}).get('stamps') or {}).get(name, {})
  domains = corpus.weights(spec, key).keys()  # malformed specs fail here
  try:
    sources = corpus.parse_sources(spec, key)
  except corpus.MissingFiles:
    if known is not None and known.keys() == domains:
      return known
    raise
  made = {}
  for source in sources:
    there = (known or {}).get(source.domain)
    if there is not None and stamps.get(source.domain) == corpus.stamp(source):
      made[source.domain] = there
    elif isinstance(there, dict) and 'blake2b' in there:
      made[source.domain] = corpus.fingerprint_of_format_1(source)
    else:
      made[source.domain] = corpus.fingerprint(source)
  return made


def stamps(data: DataConfig) -> dict[str, dict]:
  """{'sources' or 'validation_sources': {domain: stamp}} of the files as they are now."""
  specs = {'sources': data.sources, 'validation_sources': data.validation_sources}
  return {
    name: {s.domain: corpus.stamp(s) for s in corpus.parse_sources(spec, f'data.{name}') if s.files}
    for name, spec in specs.items()
    if spec
  }


def existing_tokenizer(
  data: DataConfig, vocab_size: int, given: Tokenizer | None
) -> Tokenizer | None:
  """The tokenizer that data.tokenizer names, else `given`; None if one is to be trained.
  UserError if it does not fit data.vocab_size or model.vocab_size.
  """
  if not data.tokenizer:
    return given
  tokenizer = open_tokenizer(os.path.expanduser(data.tokenizer))
  pieces = tokenizer.vocab_size
  if data.vocab_size and pieces != vocab_size:
    raise UserError(
      f'tokenizer {data.tokenizer} has {pieces} pieces, data.vocab_size is {vocab_size}: '
      f'set --config.data.vocab_size={pieces}, or leave it at 0'
    )
  # Fewer pieces than model.vocab_size are fine: the model's other rows are padding.
  if pieces > vocab_size:
    raise UserError(
      f'tokenizer {data.tokenizer} has {pieces} pieces, model.vocab_size is {vocab_size}: '
      f'set --config.model.vocab_size={pieces}, or more'
    )
  return tokenizer
