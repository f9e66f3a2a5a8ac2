"""The format of prepared data: a directory of tokenised documents, written once and read at random.

  metadata.json                     settings, tokenizer, per split and domain the totals and files
                                    with their sizes and checksums, and a checksum of all this
  tokenizer.model | tokenizer.json  the tokenizer, the latter with its tokenizer_config.json
  SPLIT-DOMAIN-00000.array_record   token records, uint16 or uint32, without BOS and EOS; those of
                                    conversations are whole, with a bit a token: learnt or not
  SPLIT-DOMAIN.index.npz            tokens of every record, records and UTF-8 bytes of every
                                    document; for conversations also the first learnt token
  held_out-DOMAIN.txt               the original held-out text, documents end to end;
                                    for conversations the assistant's replies

Splits are `train` and `held_out`. A document longer than RECORD_TOKENS lies in several records, so
that reading a sequence out of a book does not read the book. documents.py writes
and reads the files of one split and domain.
"""

import json
import os
import re
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from etils import epath

from moe import files
from moe.data.documents import HELD_OUT, TRAIN, Documents, damaged, sha256, sha256_of
from moe.data.tokenizers import FILES, MODEL_FILES, Tokenizer, from_files, must_have
from moe.errors import UserError

FORMAT = 2  # format 1 has no checksums and no hashes of source files; it can still be read
CHAT_FORMAT = 3  # conversations: as 2, with a bit a token
_READABLE = (1, 2, 3)
Made = TypeVar('Made')


class PreparedData:
  """An opened directory of prepared data."""

  def __init__(self, directory: Path, metadata: dict, weights: dict[str, float]):
    """`weights`: by training domain. UserError that names the file if any is
    missing, truncated or damaged.
    """
    self.directory, self.metadata = directory, metadata
    self.domains: tuple[str, ...] = tuple(metadata['splits'][TRAIN])
    self.held_out_domains: tuple[str, ...] = tuple(metadata['splits'][HELD_OUT])
    self.weights: tuple[float, ...] = tuple(weights[domain] for domain in self.domains)
    for entries in metadata['splits'].values():
      for entry in entries.values():
        for name, size in entry['files'].items():
          path = directory / name
          if not path.is_file() or path.stat().st_size != size:
            raise damaged(path)
    contents = {}
    for name, digest in tokenizer_files(metadata).items():
      path = directory / name
      try:
        contents[name] = path.read_bytes()
      except OSError as error:
        raise damaged(path) from error
      if sha256(contents[name]) != digest:
        raise damaged(path)
    self.tokenizer = from_files(contents)
    self._opened: dict[tuple[str, str], Documents] = {}
    self._made: dict[tuple, object] = {}

  def documents(self, split: str, domain: str) -> Documents:
    """Token documents of `split` ('train' or 'held_out') and `domain`."""
    key = (split, domain)
    if key not in self._opened:
      token_type = np.dtype(self.metadata['token_type'])
      self._opened[key] = Documents(
        self.directory, f'{split}-{domain}', self.totals(split, domain), token_type
      )
    return self._opened[key]

  def once(self, make: Callable[..., Made], *arguments: object) -> Made:
    """make(self, *arguments), made when it is first asked for, and then kept."""
    key = (make, *arguments)
    if key not in self._made:
      self._made[key] = make(self, *arguments)
    return self._made[key]

  def check_contents(self) -> None:
    """Reads every file. UserError that names one whose bytes are not what was written."""
    sums = {
      name: digest
      for entries in self.metadata['splits'].values()
      for entry in entries.values()
      for name, digest in entry.get('sha256', {}).items()
    }
    with ThreadPoolExecutor() as pool:
      found = pool.map(lambda name: sha256_of(self.directory / name), sums)
      for name, digest in zip(sums, found, strict=True):
        if digest != sums[name]:
          raise damaged(self.directory / name)

  def totals(self, split: str, domain: str) -> dict:
    """'documents', UTF-8 'bytes' and 'tokens' (without BOS and EOS) of a domain. For conversations
    'bytes' are those of the replies, 'tokens' are all, and 'learnt' is how many are learnt.
    """
    return self.metadata['splits'][split][domain]

  def held_out_text(self, domain: str) -> bytes:
    """The held-out documents of a domain as read, end to end: what evaluation scores.
    UserError if altered.
    """
    path = self.directory / f'{HELD_OUT}-{domain}.txt'
    text = path.read_bytes()
    if sha256(text) != self.totals(HELD_OUT, domain)['text_sha256']:
      raise damaged(path)
    return text


def open_held_out(directory: str | os.PathLike, tokenizer: Tokenizer | None) -> PreparedData:
  """The held-out text of a complete directory, without its training text.
  Nothing is built where there is none.

  `directory` may be in a bucket, gs://BUCKET/DIR: the files needed are then copied to a temporary
  folder that is deleted with the returned object. UserError if there is no prepared data, it is
  damaged, or another tokenizer made its tokens.
  """
  tokenizer = must_have(tokenizer)
  directory = epath.Path(os.path.expanduser(directory))
  metadata = read_metadata(directory)
  if metadata is None:
    raise UserError(f'there is no prepared data in {directory}')
  if metadata['tokenizer']['sha256'] != tokenizer.sha256:
    raise UserError(f'the prepared data in {directory} is of another tokenizer')
  metadata = metadata | {'splits': {TRAIN: {}, HELD_OUT: metadata['splits'][HELD_OUT]}}
  if '://' not in os.fspath(directory):
    return PreparedData(Path(directory), metadata, weights={})
  copies = tempfile.TemporaryDirectory(prefix='held-out-')
  names = [name for entry in metadata['splits'][HELD_OUT].values() for name in entry['files']]
  for name in [*tokenizer_files(metadata), *names]:
    try:
      (Path(copies.name) / name).write_bytes((directory / name).read_bytes())
    except FileNotFoundError as error:
      raise damaged(directory / name) from error
  data = PreparedData(Path(copies.name), metadata, weights={})
  weakref.finalize(data, copies.cleanup)
  return data


def read_metadata(directory: Path) -> dict | None:
  """metadata.json of a complete directory; None where there is nothing yet.
  UserError if the directory holds something else, or damaged data, or another version's.
  """
  path = directory / 'metadata.json'
  if not path.is_file():
    if directory.exists() and (not directory.is_dir() or not _is_free(directory)):
      raise UserError(f'{directory} is in use and holds no prepared data: choose another data.dir')
    return None
  try:
    metadata = json.loads(path.read_bytes())
    found = metadata['format']
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise damaged(path) from error
  if found not in _READABLE:
    raise UserError(
      f'{directory} was prepared by another version (format {found}, not {FORMAT}): delete it'
    )
  if found > 1 and metadata.get('checksum') != checksum(metadata):
    raise damaged(path)
  try:
    _check_metadata(metadata)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise damaged(path) from error
  return metadata


PARTIAL, LOCK = '.partial', '.lock'  # within a directory that existed, empty, before preparation
_FILE = re.compile(
  '|'.join(map(re.escape, FILES)) + r'|(train|held_out)-[\w.-]+(\.array_record|\.index\.npz|\.txt)',
  re.DOTALL,
)


def _is_free(directory):
  """Whether a directory without metadata holds nothing but what an unfinished preparation left."""
  names = {path.name for path in directory.iterdir()} - {PARTIAL, LOCK, 'lost+found'}
  begun = (directory / PARTIAL).is_dir()
  return not names or (begun and all(map(_FILE.fullmatch, names)))


def checksum(metadata: dict) -> str:
  """The SHA-256 of everything in metadata.json but the checksum itself."""
  told = {key: value for key, value in metadata.items() if key != 'checksum'}
  return sha256(json.dumps(told, sort_keys=True).encode())


def write_metadata(directory: Path, metadata: dict) -> None:
  text = json.dumps(metadata | {'checksum': checksum(metadata)}, indent=2, ensure_ascii=False)
  files.replace(directory / 'metadata.json', text + '\n')


def _check_metadata(metadata):
  """ValueError, KeyError, TypeError or AttributeError unless the metadata is complete
  and names no file outside its directory.

  It may come from somebody else, and the names in it become paths.
  """
  if metadata['token_type'] not in ('uint16', 'uint32') or not isinstance(
    metadata['settings'], dict
  ):
    raise ValueError
  if not isinstance(metadata['tokenizer']['sha256'], str):
    raise TypeError
  names = tokenizer_files(metadata).keys()
  if not names <= set(FILES) or len(names & set(MODEL_FILES)) != 1:
    raise ValueError
  for split in (TRAIN, HELD_OUT):
    for domain, entry in metadata['splits'][split].items():
      names = [*entry['files'], *(name for name, _ in entry['shards']), *entry.get('sha256', {})]
      if not re.fullmatch(r'[\w.-]+', domain) or not all(map(_FILE.fullmatch, names)):
        raise ValueError
      if not {name for name, _ in entry['shards']} <= entry['files'].keys():
        raise ValueError
      counts = [entry[name] for name in ('documents', 'bytes', 'tokens')]
      counts.append(entry.get('learnt', 0))
      counts += [*entry['files'].values(), *(records for _, records in entry['shards'])]
      if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError


def tokenizer_entry(tokenizer: Tokenizer) -> dict:
  """The tokenizer's entry in metadata.json."""
  digests = {name: sha256(content) for name, content in tokenizer.files().items()}
  return {'sha256': tokenizer.sha256, 'vocab_size': tokenizer.vocab_size, 'files': digests}


def tokenizer_files(metadata: dict) -> dict[str, str]:
  """{name: SHA-256} of the tokenizer's files."""
  entry = metadata['tokenizer']
  # Metadata from when only SentencePiece models were supported has no `files`.
  return entry.get('files', {'tokenizer.model': entry['sha256']})
