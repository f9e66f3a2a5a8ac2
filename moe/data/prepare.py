"""Tokenises a corpus into a directory once, so that training reads tokens only.

The directory appears whole or not at all: it is built beside its place and renamed. A second
process that wants the same directory waits for the first.
"""

import contextlib
import dataclasses
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from moe import config as moe_config
from moe import files
from moe.config import Config
from moe.data import corpus, store
from moe.data.chat import conversations
from moe.data.chat import packing as chat_packing
from moe.data.documents import DomainWriter
from moe.data.progress import Progress
from moe.data.readers import BadRow
from moe.data.sample import TextSample
from moe.data.settings import existing_tokenizer, settings, stamps
from moe.data.store import HELD_OUT, TRAIN, PreparedData
from moe.data.tokenising import Tokeniser
from moe.data.tokenizers import Tokenizer, train_tokenizer
from moe.errors import UserError, of_system

_BATCH_CHARACTERS = 1_000_000  # tokenised at once
# The keys of `settings` that say how the tokenizer was made.
_OF_THE_TOKENIZER = ('tokenizer', 'vocab_size', 'tokenizer_sample_mb')


def prepare(
  config: Config,
  directory: str | Path,
  is_main: bool = True,
  tokenizer: Tokenizer | None = None,
) -> PreparedData:
  """Opens the prepared data in `directory`, building it first if there is none.

  `is_main`: True for one of the processes that open the same directory:
  it checks every byte of data that was there before, and prints the notes.
  `tokenizer`: the one to tokenise with where data.tokenizer names none; None: one is trained.
  UserError for a corpus or tokenizer that cannot be used, a directory made with other settings,
  damaged files, a full disk, and too little text for one batch. Whether the directory can be
  written is tried before the corpus is read.
  """
  # Follows a link, which may lead to where there is more room than in its own folder.
  directory = Path(os.path.realpath(os.path.expanduser(directory)))
  weights = corpus.weights(config.data.sources)
  metadata = store.read_metadata(directory)
  built = metadata is None
  if built:
    with write_errors(directory), _sole_builder(directory):
      # Otherwise another process built it while this one waited.
      if store.read_metadata(directory) is None:
        _build_in_place(config, directory, tokenizer)
    metadata = store.read_metadata(directory)
  _check_settings(config, metadata, directory, tokenizer)
  prepared = PreparedData(directory, metadata, weights)
  if is_main and not built:
    prepared.check_contents()
  if is_main:
    tell(_notes(prepared))
  _check_size(config.data, prepared)
  if is_main and config.data.format == 'chat':
    tell(chat_packing.notes(prepared, config.data))
  return prepared


def _check_settings(config, metadata, directory, tokenizer):
  wanted = settings(config.data, config.tokenizer_vocab_size, metadata, tokenizer)
  there = metadata['settings']
  if tokenizer and not config.data.tokenizer:
    if metadata['tokenizer']['sha256'] != tokenizer.sha256:
      raise UserError(
        f'{directory} was prepared with another tokenizer than that of train.init_from, whose '
        "parameters belong to that tokenizer's ids: choose another data.dir, or list what depends "
        'on the vocabulary in train.init_skip'
      )
    # It is the same tokenizer, whether it was trained there or not.
    wanted, there = (
      {name: value for name, value in each.items() if name not in _OF_THE_TOKENIZER}
      for each in (wanted, there)
    )
  if different := moe_config.differences(there, wanted):
    listed = '; '.join(
      f'data.{key}: {old} there, {new} now' for key, (old, new) in different.items()
    )
    raise UserError(
      f'{directory} was prepared with other settings ({listed}): '
      'choose another data.dir or delete it'
    )


def tell(notes: Iterable[str]) -> None:
  """Prints notes on stderr, a line each."""
  for note in notes:
    print(note, file=sys.stderr, flush=True)


def _notes(prepared):
  """What a user should know about prepared data, a line each."""
  for domain in prepared.held_out_domains:
    if prepared.totals(HELD_OUT, domain)['documents'] == 1:
      yield (
        f'warning: one document alone is held out of domain {domain!r}: '
        'its held-out loss says little'
      )
  yield from lossy(prepared.metadata['splits'])


def lossy(splits: Mapping[str, Mapping[str, dict]]) -> Iterator[str]:
  """Warnings of text that its tokens lose. `splits`: {kind: {domain: totals}}."""
  for split, entries in splits.items():
    for domain, entry in entries.items():
      if lost := entry.get('lost'):
        yield (
          f'warning: the tokenizer is lossy: it does not give back {lost["documents"]} of '
          f'{entry["documents"]} {split} documents of domain {domain!r}; {lost["bytes"]} of their '
          f'{entry["bytes"]} bytes are unknown to it, and count 8 bits each in bits per byte'
        )


def skipped(bad: Sequence[BadRow]) -> Iterator[str]:
  """What a user should know about rows that are left out."""
  if bad:
    yield f'data.bad_rows=skip: {len(bad)} rows are left out, such as {bad[0]}'


def _check_size(data, prepared):
  tokens = sum(prepared.totals(TRAIN, domain)['tokens'] for domain in prepared.domains)
  documents = sum(prepared.totals(TRAIN, domain)['documents'] for domain in prepared.domains)
  if tokens + documents < data.batch_size * data.seq_len:
    raise UserError(
      f'too little text for one batch: data.batch_size={data.batch_size} × '
      f'data.seq_len={data.seq_len} is {data.batch_size * data.seq_len} tokens, the training text '
      f'has {tokens + documents}: lower them or add text'
    )


def _build_in_place(config, directory, tokenizer):
  """Builds in a folder of its own. Only one process at a time comes here,
  so a folder that is there already is stale.

  The folder is renamed to `directory`. If that exists already, as a mount point that nothing can
  replace, say, the folder lies within it, and its files are moved up, metadata.json last.
  """
  within = directory.is_dir()
  partial = directory / store.PARTIAL
  if not within:
    partial = directory.parent / f'.{directory.name}.partial'
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir()
  try:
    _build(config, partial, tokenizer)
    if within:
      names = sorted(os.listdir(partial), key=lambda name: (name == 'metadata.json', name))
      for name in names:
        os.replace(partial / name, directory / name)
    else:
      os.rename(partial, directory)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _build(config, directory, tokenizer):
  data, vocab_size = config.data, config.tokenizer_vocab_size
  tell(corpus.parse_and_tell(data)[2])
  stamped, made_with = stamps(data), settings(data, vocab_size, given=tokenizer)
  tell(
    f'domain {domain!r} has too few documents to hold out a share of '
    f'data.holdout={data.holdout:g}: the end of the longest is held out'
    for domain in corpus.find_ends(data)
  )
  total = None
  tokenizer = existing_tokenizer(data, vocab_size, tokenizer)
  if tokenizer:
    tell(_padding(config, tokenizer))
  else:
    sample, total = _sample(data)
    tokenizer = train_tokenizer(sample, vocab_size)
  for name, content in tokenizer.files().items():
    (directory / name).write_bytes(content)
  token_type = np.dtype('uint16' if tokenizer.vocab_size <= 1 << 16 else 'uint32')
  bad = []
  foreign = made_with['tokenizer'] != 'trained'
  splits = _write_documents(data, tokenizer, token_type, directory, total, bad, foreign)
  tell(skipped(bad))
  metadata = {
    'format': store.CHAT_FORMAT if data.format == 'chat' else store.FORMAT,
    'settings': made_with,
    'stamps': stamped,
    'python': platform.python_version(),  # its standard library is the built-in corpus
    'tokenizer': store.tokenizer_entry(tokenizer),
    'token_type': token_type.name,
    **({'skipped_rows': len(bad)} if bad else {}),
    'splits': splits,
  }
  if stamps(data) != stamped:
    raise UserError('files of data.sources changed while they were read: start again')
  store.write_metadata(directory, metadata)


def _sample(data):
  """(texts to train a tokenizer on, bytes of the whole corpus),
  in one pass that also finds faults early.
  """
  sample, bytes_of = TextSample(int(data.tokenizer_sample_mb * 1e6)), {}
  with Progress('reading', None) as progress:
    for document in corpus.documents(data):
      size = len(document.text.encode())
      split = HELD_OUT if document.held_out else TRAIN
      bytes_of[split, document.domain] = bytes_of.get((split, document.domain), 0) + size
      if not document.held_out:
        text = document.text if data.format == 'text' else conversations.said(document.text)
        sample.add(document.domain, text)
      progress.add(size)
  _check_splits(data, bytes_of.keys())
  return sample.texts(), sum(bytes_of.values())


def _write_documents(data, tokenizer, token_type, directory, total, bad, foreign):
  """Tokenises every document into `directory`; returns {split: {domain: totals}}.
  `total`: bytes of the corpus, for the progress bar. `foreign`: the tokenizer may be lossy.
  """
  writers: dict[tuple[str, str], DomainWriter] = {}
  threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else data.num_threads
  tokenise = Tokeniser(data, tokenizer, threads, foreign)
  untold, copies, held_out = 0, 0, _held_out_digests(data)
  with Progress('tokenising', total) as progress:
    for batch in batches(corpus.read(data, bad)):
      for document, (tokens_N, text, lost, learnt_N) in tokenise(batch, bad):
        key = (HELD_OUT if document.held_out else TRAIN, document.domain)
        whole = document.text.encode()
        progress.add(len(whole))
        copies += not document.held_out and _digest(whole) in held_out
        if not len(tokens_N):
          untold += 1
          continue
        if key not in writers:
          writers[key] = DomainWriter(directory, *key, token_type, tokenise.is_chat)
        writers[key].add(tokens_N, text, lost, learnt_N)
  if untold:
    tell([f'{untold} documents are left out: data.tokenizer makes no token of them'])
  if copies:
    tell([f'warning: {copies} training documents are copies of held-out ones'])
  _check_splits(data, writers.keys())
  splits = {TRAIN: {}, HELD_OUT: {}}
  for (split, domain), writer in writers.items():
    splits[split][domain] = writer.close()
  return splits


def _held_out_digests(data):
  """The digests of the documents of data.validation_sources; none without it, since data.holdout
  trains on no copy of a held-out document.
  """
  if not data.validation_sources:
    return frozenset()
  alone = dataclasses.replace(
    data, sources=data.validation_sources, validation_sources='', holdout=0.0
  )
  return {_digest(document.text.encode()) for document in corpus.documents(alone)}


def _digest(text):
  return hashlib.blake2b(text, digest_size=16).digest()


def _check_splits(data, present):
  """UserError for a domain without training text, or without held-out text.
  `present`: (split, domain) pairs that have text.
  """
  for domain in corpus.weights(data.sources):
    if (TRAIN, domain) not in present:
      if (HELD_OUT, domain) not in present:
        raise UserError(f'data.sources: domain {domain!r} is empty: its files hold no text')
      raise UserError(
        f'domain {domain!r}: every document is held out: '
        f'lower data.holdout={data.holdout:g} or add text'
      )
    if not data.validation_sources and (HELD_OUT, domain) not in present:
      raise UserError(
        f'domain {domain!r} has no held-out text: raise data.holdout={data.holdout:g} (a share of '
        'whole documents) or give data.validation_sources'
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


def batches(documents: Iterable[corpus.Document]) -> Iterator[list[corpus.Document]]:
  """The documents in batches that are tokenised at once, of about a megabyte."""
  batch, size = [], 0
  for document in documents:
    batch.append(document)
    size += len(document.text)
    if size >= _BATCH_CHARACTERS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _padding(config, tokenizer):
  rows, pieces = config.model.vocab_size, tokenizer.vocab_size
  if rows > pieces:
    yield (
      f'model.vocab_size={rows} is more than the {pieces} pieces of '
      f'{config.data.tokenizer or "the tokenizer"}: '
      f'the last {rows - pieces} rows are padding'
    )


@contextlib.contextmanager
def _sole_builder(directory):
  """Holds a lock beside `directory`, or in it if it exists;
  the lock goes with the process, however that ends.
  """
  directory.parent.mkdir(parents=True, exist_ok=True)
  lock = directory.parent / f'.{directory.name}.lock'
  if directory.is_dir():
    lock = directory / store.LOCK
  waiting = f'waiting for another process that is preparing {directory}'
  with files.locked(lock, lambda _: tell([waiting])):
    yield


@contextlib.contextmanager
def write_errors(directory: Path) -> Iterator[None]:
  """Turns errors of writing into a UserError of one line. Reading raises UserErrors by itself."""
  try:
    yield
  except OSError as error:
    raise of_system(
      error, f'cannot write {error.filename or directory}: {error.strerror or error}'
    ) from error
  except RuntimeError as error:  # ArrayRecord raises this for a full disk
    raise UserError(
      f'cannot write prepared data in {directory}: {str(error).splitlines()[0]}'
    ) from error
