"""Tokenises a corpus into a directory once, so that training reads tokens only.

The directory appears whole or not at all: it is built beside its place and renamed. A second process that wants the
same directory waits for the first.
"""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from moe import config as moe_config
from moe.config import Config, DataConfig
from moe.data import corpus, store
from moe.data.progress import Progress
from moe.data.sample import TextSample
from moe.data.store import HELD_OUT, TRAIN, PreparedData
from moe.data.tokenizer import Tokenizer, train_tokenizer
from moe.errors import UserError, of_system

_BATCH_CHARACTERS = 1_000_000  # tokenised at once


def prepare(config: Config, directory: str | Path) -> PreparedData:
  """Opens the prepared data in `directory`, building it first if there is none.

  UserError for a corpus or tokenizer that cannot be used, a directory that other settings made, damaged files, a full
  disk, and too little text for one batch.
  """
  directory = Path(os.path.abspath(directory))
  weights = corpus.weights(config.data.sources)
  metadata = store.read_metadata(directory)
  if metadata is None:
    with _write_errors(directory), _sole_builder(directory):
      if (
        store.read_metadata(directory) is None
      ):  # else another process built it while this one waited
        _build_beside(config, directory)
    metadata = store.read_metadata(directory)
  _check_settings(config, metadata, directory)
  prepared = PreparedData(directory, metadata, weights)
  _check_size(config.data, prepared)
  return prepared


def settings(data: DataConfig, vocab_size: int, stored: dict | None = None) -> dict:
  """What decides the contents of prepared data, as JSON. Weights do not, nor how sequences are made.

  Sources whose files are no longer there count as those in `stored`, the settings of a complete directory: prepared
  data needs no corpus beside it.
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
  if data.tokenizer:
    tokenizer = {
      'tokenizer': f'sha256 {store.sha256(_existing_tokenizer(data, vocab_size).to_bytes())[:16]}'
    }
  sources = _fingerprints(data.sources, 'data.sources', stored)
  return {'sources': sources, **held_out, 'text_key': data.text_key, **tokenizer}


def _fingerprints(spec, key, stored):
  known = (stored or {}).get(key.removeprefix('data.'))
  domains = corpus.weights(spec, key).keys()  # malformed specs fail here
  try:
    return {source.domain: corpus.fingerprint(source) for source in corpus.parse_sources(spec, key)}
  except UserError:
    if known is not None and known.keys() == domains:
      return known
    raise


def _check_settings(config, metadata, directory):
  wanted = settings(config.data, config.tokenizer_vocab_size, metadata['settings'])
  if different := moe_config.differences(metadata['settings'], wanted):
    listed = '; '.join(
      f'data.{key}: {old} there, {new} now' for key, (old, new) in different.items()
    )
    raise UserError(
      f'{directory} was prepared with other settings ({listed}): choose another data.dir or delete it'
    )


def _check_size(data, prepared):
  tokens = sum(prepared.totals(TRAIN, domain)['tokens'] for domain in prepared.domains)
  documents = sum(prepared.totals(TRAIN, domain)['documents'] for domain in prepared.domains)
  if tokens + documents < data.batch_size * data.seq_len:
    raise UserError(
      f'too little text for one batch: data.batch_size={data.batch_size} × data.seq_len={data.seq_len} is '
      f'{data.batch_size * data.seq_len} tokens, the training text has {tokens + documents}: lower them or add text'
    )


def _build_beside(config, directory):
  """Builds in a hidden sibling and renames it. Only one process at a time comes here, so a sibling found is stale."""
  beside = directory.parent / f'.{directory.name}.partial'
  shutil.rmtree(beside, ignore_errors=True)
  beside.mkdir()
  try:
    _build(config, beside)
    os.rename(beside, directory)
  finally:
    shutil.rmtree(beside, ignore_errors=True)


def _build(config, directory):
  data, vocab_size = config.data, config.tokenizer_vocab_size
  made_with = settings(data, vocab_size)
  total = None
  if data.tokenizer:
    tokenizer = _existing_tokenizer(data, vocab_size)
  else:
    sample, total = _sample(data)
    tokenizer = train_tokenizer(sample, vocab_size)
  (directory / 'tokenizer.model').write_bytes(tokenizer.to_bytes())
  token_type = np.dtype('uint16' if tokenizer.vocab_size <= 1 << 16 else 'uint32')
  metadata = {
    'format': store.FORMAT,
    'settings': made_with,
    'python': platform.python_version(),  # its standard library is the built-in corpus
    'tokenizer': {'sha256': store.sha256(tokenizer.to_bytes()), 'vocab_size': tokenizer.vocab_size},
    'token_type': token_type.name,
    'splits': _write_documents(data, tokenizer, token_type, directory, total),
  }
  (directory / 'metadata.json').write_text(
    json.dumps(metadata, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'
  )


def _sample(data):
  """(texts to train a tokenizer on, bytes of the whole corpus), in one pass that also finds faults early."""
  sample, bytes_of = TextSample(int(data.tokenizer_sample_mb * 1e6)), {}
  with Progress('reading', None) as progress:
    for document in corpus.documents(data):
      size = len(document.text.encode())
      split = HELD_OUT if document.held_out else TRAIN
      bytes_of[split, document.domain] = bytes_of.get((split, document.domain), 0) + size
      if not document.held_out:
        sample.add(document.domain, document.text)
      progress.add(size)
  _check_splits(data, bytes_of.keys())
  return sample.texts(), sum(bytes_of.values())


def _write_documents(data, tokenizer, token_type, directory, total):
  """Tokenises every document into `directory`; returns {split: {domain: totals}}. `total`: bytes, for the progress."""
  writers: dict[tuple[str, str], store.DomainWriter] = {}
  threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else data.num_threads
  with Progress('tokenising', total) as progress:
    for batch in _batches(corpus.documents(data)):
      encoded = tokenizer.encode_batch([document.text for document in batch], threads)
      for document, tokens in zip(batch, encoded):
        key = (HELD_OUT if document.held_out else TRAIN, document.domain)
        if key not in writers:
          writers[key] = store.DomainWriter(directory, *key, token_type)
        text = document.text.encode()
        writers[key].add(tokens, text)
        progress.add(len(text))
  _check_splits(data, writers.keys())
  splits = {TRAIN: {}, HELD_OUT: {}}
  for (split, domain), writer in writers.items():
    splits[split][domain] = writer.close()
  return splits


def _check_splits(data, present):
  """`present`: (split, domain) pairs that have text."""
  for domain in corpus.weights(data.sources):
    if (TRAIN, domain) not in present:
      if (HELD_OUT, domain) not in present:
        raise UserError(f'data.sources: domain {domain!r} is empty: its files hold no text')
      raise UserError(
        f'domain {domain!r}: every document is held out: lower data.holdout={data.holdout:g} or add text'
      )
    if not data.validation_sources and (HELD_OUT, domain) not in present:
      raise UserError(
        f'domain {domain!r} has no held-out text: raise data.holdout={data.holdout:g} (a share of whole documents) '
        'or give data.validation_sources'
      )
  for domain in (
    corpus.weights(data.validation_sources, 'data.validation_sources')
    if data.validation_sources
    else ()
  ):
    if (HELD_OUT, domain) not in present:
      raise UserError(
        f'data.validation_sources: domain {domain!r} is empty: its files hold no text'
      )


def _batches(documents: Iterable[corpus.Document]) -> Iterator[list[corpus.Document]]:
  batch, size = [], 0
  for document in documents:
    batch.append(document)
    size += len(document.text)
    if size >= _BATCH_CHARACTERS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _existing_tokenizer(data, vocab_size):
  tokenizer = Tokenizer.from_file(data.tokenizer)
  pieces = tokenizer.vocab_size
  if pieces != vocab_size:
    key = 'data.vocab_size' if data.vocab_size else 'config.model.vocab_size'
    raise UserError(
      f'tokenizer {data.tokenizer} has {pieces} pieces, {key} is {vocab_size}: set --config.model.vocab_size={pieces}, '
      f"or --config.data.vocab_size={pieces} if the model's is padded above it"
    )
  return tokenizer


@contextlib.contextmanager
def _sole_builder(directory):
  """Holds a lock beside `directory`; it goes with the process, however that ends."""
  directory.parent.mkdir(parents=True, exist_ok=True)
  with open(directory.parent / f'.{directory.name}.lock', 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(
        f'waiting for another process that is preparing {directory}', file=sys.stderr, flush=True
      )
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def _write_errors(directory):
  """Errors of writing as one line. Errors of reading the corpus have become UserErrors by now."""
  try:
    yield
  except OSError as error:
    raise of_system(
      error, f'cannot write {error.filename or directory}: {error.strerror or error}'
    ) from error
  except RuntimeError as error:  # ArrayRecord's way to tell of a full disk
    raise UserError(
      f'cannot write prepared data in {directory}: {str(error).splitlines()[0]}'
    ) from error
