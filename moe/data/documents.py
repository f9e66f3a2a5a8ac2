"""The tokenised documents of one split and domain: written once, read at random.

They lie in the SPLIT-DOMAIN files that store.py lists.
"""

import array
import hashlib
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from moe.data.tokenizers import Lost
from moe.errors import UserError

RECORD_TOKENS = 4096
SHARD_TOKENS = 1 << 28
TRAIN, HELD_OUT = 'train', 'held_out'
_INDEX_TYPES = {
  'record_tokens': np.uint32,
  'document_records': np.uint32,
  'document_bytes': np.uint64,
  'first_learnt': np.uint32,
}


class DomainWriter:
  """Writes the documents of one split and domain. Holds the index in memory,
  16 bytes a document, but no tokens.
  """

  def __init__(
    self, directory: Path, split: str, domain: str, token_type: np.dtype, is_chat: bool = False
  ):
    self._directory, self._name, self._token_type = directory, f'{split}-{domain}', token_type
    self._index = {'record_tokens': array.array('I'), 'document_records': array.array('I')}
    self._index['document_bytes'] = array.array('Q')
    self._is_chat, self._learnt = is_chat, 0
    if is_chat:
      self._index['first_learnt'] = array.array('I')
    self._shards: list[list] = []  # [file name, records]
    self._shard, self._room = None, 0
    self._text = (directory / f'{self._name}.txt').open('wb') if split == HELD_OUT else None
    self._text_hash, self._tokens_hash = hashlib.sha256(), hashlib.sha256()
    self._lost = Lost(0, 0)

  def add(
    self,
    tokens: Sequence[int],
    text: bytes,
    lost: Lost = Lost(0, 0),  # noqa: B008
    learnt_N: np.ndarray | None = None,
  ) -> None:
    """Writes one document: its tokens without BOS and EOS, its text in UTF-8, and what the tokens
    lose of it.

    `learnt_N`: which tokens of a conversation are learnt, at least one. The tokens are then those
    of the whole conversation, and `text` is only what the learnt ones say.
    """
    self._lost = self._lost.plus(lost)
    tokens_N = np.asarray(tokens, self._token_type)
    for begin in range(0, len(tokens_N), RECORD_TOKENS):
      here = slice(begin, begin + RECORD_TOKENS)
      self._write(
        tokens_N[here], b'' if learnt_N is None else np.packbits(learnt_N[here]).tobytes()
      )
    if learnt_N is not None:
      self._index['first_learnt'].append(int(learnt_N.argmax()))
      self._learnt += int(learnt_N.sum())
    self._index['document_records'].append(-(-len(tokens_N) // RECORD_TOKENS))
    self._index['document_bytes'].append(len(text))
    if self._text:
      self._text.write(text)
      self._text_hash.update(text)

  def close(self) -> dict:
    """Finishes the files and returns their entry for metadata.json."""
    self._close_shard()
    if self._text:
      self._text.close()
    index = {name: np.asarray(values, _INDEX_TYPES[name]) for name, values in self._index.items()}
    np.savez(self._directory / f'{self._name}.index.npz', **index)
    files = [name for name, _ in self._shards] + [f'{self._name}.index.npz']
    files += [f'{self._name}.txt'] if self._text else []
    return {
      'documents': len(index['document_bytes']),
      'bytes': int(index['document_bytes'].sum()),
      'tokens': int(index['record_tokens'].sum()),
      'shards': self._shards,
      'files': {name: (self._directory / name).stat().st_size for name in files},
      'sha256': {name: sha256_of(self._directory / name) for name in files},
      'tokens_sha256': self._tokens_hash.hexdigest(),
      **({'learnt': self._learnt} if self._is_chat else {}),
      **({'lost': self._lost._asdict()} if self._lost.documents else {}),
      **({'text_sha256': self._text_hash.hexdigest()} if self._text else {}),
    }

  def _write(self, record_N, learnt):
    if self._room <= 0:
      self._close_shard()
      name = f'{self._name}-{len(self._shards):05d}.array_record'
      self._shard, self._room = (
        ArrayRecordWriter(str(self._directory / name), 'group_size:1,zstd:1'),
        SHARD_TOKENS,
      )
      self._shards.append([name, 0])
    raw = record_N.tobytes() + learnt
    self._shard.write(raw)
    self._tokens_hash.update(raw)
    self._shards[-1][1] += 1
    self._index['record_tokens'].append(len(record_N))
    self._room -= len(record_N)

  def _close_shard(self):
    if self._shard:
      self._shard.close()
      self._shard = None


class Documents:
  """Random access to the tokenised documents of one split and domain;
  safe to share between threads.
  """

  def __init__(self, directory: Path, name: str, entry: dict, token_type: np.dtype):
    """`name`: SPLIT-DOMAIN; `entry`: what DomainWriter.close returned.
    UserError if the index is damaged.
    """
    self._token_type = token_type
    self.is_chat = 'learnt' in entry
    self._paths = [directory / shard for shard, _ in entry['shards']]
    self._first_of_shard = np.concatenate(
      [[0], np.cumsum([records for _, records in entry['shards']])]
    )
    self._readers: list[ArrayRecordReader | None] = [None] * len(self._paths)
    self._opening = threading.Lock()
    path = directory / f'{name}.index.npz'
    try:
      with np.load(path) as index:
        self.record_tokens = index['record_tokens']  # (records,)
        self.document_bytes = index['document_bytes']  # (documents,)
        counts = index['document_records']
        self.first_learnt = index['first_learnt'] if self.is_chat else None  # (documents,)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      raise damaged(path) from error
    self.first_record = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])  # (documents + 1,)
    found = len(counts), len(self.document_bytes), self.first_record[-1], self.record_tokens.sum()
    if found != (entry['documents'], entry['documents'], len(self.record_tokens), entry['tokens']):
      raise damaged(path)

  def __len__(self) -> int:
    """Number of documents."""
    return len(self.document_bytes)

  def record(self, number: int) -> np.ndarray:
    """Tokens (N,) of one record. UserError if it cannot be read."""
    return self._record(number)[0]

  def _record(self, number):
    """(tokens, which of them are learnt; None for text)."""
    count = int(self.record_tokens[number])
    size = count * self._token_type.itemsize
    shard = int(np.searchsorted(self._first_of_shard, number, side='right')) - 1
    within = int(number - self._first_of_shard[shard])
    try:
      # Reads a range, in 8 μs, because read([index]) takes longer the larger the shard is:
      # 0.4 ms at 10⁵ records.
      (raw,) = self._reader(shard).read(within, within + 1)
    except (RuntimeError, ValueError, OSError, IndexError) as error:  # records carry checksums
      raise damaged(self._paths[shard]) from error
    if len(raw) != size + self.is_chat * -(-count // 8):
      raise damaged(self._paths[shard])
    tokens_N = np.frombuffer(raw, self._token_type, count)
    if not self.is_chat:
      return tokens_N, None
    return tokens_N, np.unpackbits(np.frombuffer(raw, np.uint8, offset=size), count=count) > 0

  def _reader(self, shard):
    with self._opening:
      if self._readers[shard] is None:
        # Options for random access.
        options = {'options': 'readahead_buffer_size:0', 'file_reader_buffer_size': 32768}
        self._readers[shard] = ArrayRecordReader(str(self._paths[shard]), **options)
      return self._readers[shard]

  def document(self, number: int) -> np.ndarray:
    """Tokens (N,) of a whole document, without BOS and EOS."""
    records = range(*self.first_record[number : number + 2])
    # A document may have no tokens, in format 1 and in given.py: then there is no record to join.
    return np.concatenate([np.zeros(0, self._token_type), *map(self.record, records)])

  def conversation(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (N,) of a whole conversation, control pieces included,
    and which of them are learnt, bool (N,).
    """
    records = map(self._record, range(*self.first_record[number : number + 2]))
    tokens, learnt = zip(*records, strict=True)
    return np.concatenate(tokens), np.concatenate(learnt)

  @property
  def lengths(self) -> np.ndarray:
    """int64 (documents,): the number of tokens of each."""
    ends_R = np.concatenate([[0], np.cumsum(self.record_tokens, dtype=np.int64)])
    return np.diff(ends_R[self.first_record])


def damaged(path: Path) -> UserError:
  """The error for a file of prepared data that is not what was written."""
  return UserError(
    f'prepared data is damaged: {path} is missing, truncated or altered: delete its directory'
  )


def sha256(contents: bytes) -> str:
  return hashlib.sha256(contents).hexdigest()


def sha256_of(path: Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
