"""A user's own text, to be scored beside the held-out text: files → prepared data of their own, and
which of their documents a run was trained on.
"""

import hashlib
import os
import tempfile
import weakref
from pathlib import Path

import numpy as np

from moe.config import DataConfig
from moe.data import corpus, prepare, store
from moe.data.documents import Documents, DomainWriter
from moe.data.progress import Progress
from moe.data.store import HELD_OUT, TRAIN, PreparedData
from moe.data.tokenising import Tokeniser
from moe.data.tokenizers import Tokenizer, must_have
from moe.errors import UserError


def open_given(sources: str, data: DataConfig, tokenizer: Tokenizer | None) -> PreparedData:
  """Every document of `sources`, whole, as the held-out text of prepared data.

  The data lies in a temporary folder that is deleted with the returned object. UserError for what
  data.sources would be refused for.

  Args:
    sources: as data.sources; weights mean nothing here.
    data: how the run reads files: format, text_key, separator, bad_rows, max_document_mb, and how
      it writes down conversations.
  """
  tokenizer = must_have(tokenizer)
  folder = tempfile.TemporaryDirectory(prefix='given-text-')
  directory = Path(folder.name)
  with prepare.write_errors(directory):
    metadata = _write(sources, data, tokenizer, directory)
    prepared = PreparedData(directory, metadata, weights={})
  weakref.finalize(prepared, folder.cleanup)
  prepare.tell(prepare.lossy({'given': metadata['splits'][HELD_OUT]}))
  return prepared


def trained_on(
  given: PreparedData, directory: str | os.PathLike
) -> tuple[dict[str, int] | None, list[str]]:
  """(by domain, how many documents of `given` a run was trained on; warnings that say so).

  `directory`: the run's prepared data. If it cannot be read, the counts are None and the warning
  says why. A document counts if all its tokens are those of a training document, or if only its end
  was held out.
  """
  try:
    found = _copies(given, _open_training(directory, given.tokenizer))
  except UserError as error:
    return None, [f'whether the run was trained on this text is not known: {error}']
  return found, [
    f'warning: the run was trained on {count} of {given.totals(HELD_OUT, domain)["documents"]} '
    f'given documents of domain {domain!r}'
    for domain, count in found.items()
    if count
  ]


def _write(sources, data, tokenizer, directory):
  """Writes the documents into `directory` and returns their metadata."""
  writers, bad = {}, []
  token_type = np.dtype('uint16' if tokenizer.vocab_size <= 1 << 16 else 'uint32')
  found, notes = corpus.parse_sources_and_tell(sources, '--sources')
  prepare.tell(notes)
  tokenise = Tokeniser(data, tokenizer, data.num_threads, is_lossy=True)
  with Progress('tokenising', None) as progress:
    for batch in prepare.batches(corpus.whole(found, data, bad)):
      for (text, domain, _), tokenised in tokenise(batch, bad):
        if domain not in writers:
          kind = token_type, tokenise.is_chat
          writers[domain] = DomainWriter(directory, HELD_OUT, domain, *kind)
        # A document without tokens is added, too: its EOS is scored, and its bytes are lost.
        writers[domain].add(*tokenised)
        progress.add(len(text.encode()))
  prepare.tell(prepare.skipped(bad))
  if empty := [source.domain for source in found if source.domain not in writers]:
    raise UserError(f'--sources: domain {empty[0]!r} is empty: its files hold no text')
  for name, content in tokenizer.files().items():
    (directory / name).write_bytes(content)
  return {
    'tokenizer': store.tokenizer_entry(tokenizer),
    'token_type': token_type.name,
    'splits': {TRAIN: {}, HELD_OUT: {domain: each.close() for domain, each in writers.items()}},
  }


def _open_training(directory, tokenizer):
  if '://' in os.fspath(directory):
    raise UserError(f'the training text in {directory} is not read from here')
  directory = Path(os.path.expanduser(directory))
  metadata = store.read_metadata(directory)
  if metadata is None:
    raise UserError(f'there is no prepared data in {directory}')
  if metadata['tokenizer']['sha256'] != tokenizer.sha256:
    raise UserError(f'the prepared data in {directory} is of another tokenizer')
  return PreparedData(directory, metadata, dict.fromkeys(metadata['splits'][TRAIN], 1.0))


def _copies(given, training):
  ends = [
    training.held_out_text(domain)
    for domain in training.held_out_domains
    # A conversation is never held out in part.
    if 'learnt' not in training.totals(HELD_OUT, domain)
    and training.totals(HELD_OUT, domain)['documents'] == 1
  ]
  known = [
    (domain, number, size, digest)
    for domain in given.held_out_domains
    for number, size, digest in _identities(given, domain, ends)
  ]
  sizes = np.array([size for _, _, size, _ in known], np.uint64)
  digests = set()
  for domain in training.domains:
    documents = training.documents(TRAIN, domain)
    # Reads only documents with the size of a given one.
    for number in np.flatnonzero(np.isin(_sizes(documents), sizes)):
      digests.add(_digest(documents.document(number)))
  copies = {(domain, number) for domain, number, _, digest in known if digest in digests}
  return {domain: sum(each == domain for each, _ in copies) for domain in given.held_out_domains}


def _identities(given, domain, ends):
  """(number, size, digest) of every document in the forms that a run may have trained on: whole,
  and without one of the held-out `ends`.
  """
  documents, text = given.documents(HELD_OUT, domain), given.held_out_text(domain)
  begin = 0
  for number, size in enumerate(_sizes(documents)):
    yield number, size, _digest(documents.document(number))
    whole = text[begin : begin + int(documents.document_bytes[number])]
    begin += len(whole)
    for end in ends:
      if whole.endswith(end) and (trained := whole[: -len(end)]):
        (tokens_N,) = given.tokenizer.encode_arrays([trained.decode()])
        yield number, len(trained) << 32 | len(tokens_N), _digest(tokens_N)


def _sizes(documents: Documents):
  """Bytes and tokens of every document, as one uint64 number."""
  return documents.document_bytes << np.uint64(32) | documents.lengths.astype(np.uint64)


def _digest(tokens_N):
  return hashlib.blake2b(np.asarray(tokens_N, np.uint32).tobytes(), digest_size=16).digest()
