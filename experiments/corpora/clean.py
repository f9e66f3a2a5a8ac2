"""The cleaning that every text goes through: Unicode, boilerplate, duplicates, caps.
The result depends on neither machine nor time.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_LONG = 60  # bytes; shorter paragraphs (headings, one-line commands) recur by nature
_BOILERPLATE = 3  # documents of one source that may share a paragraph
_NEAR = 0.5  # with more than this share of long paragraphs seen before, a text is a near-duplicate
# Control characters but tab and newline, soft hyphens; zero-width spaces, bidirectional marks,
# byte-order marks, noncharacters; lone surrogates, which JSON and HTML can spell and UTF-8 cannot.
_UNSEEN = re.compile(
  '[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069'
  '\ufeff\ufffe\uffff\ud800-\udfff]'
)
_HAN = re.compile('[\u3400-\u4dbf\u4e00-\u9fff]')


def normalise(text: str) -> str:
  """The text in NFC, with newlines as \\n and at most one empty line at a time;
  without control characters and spaces at line ends.
  """
  text = unicodedata.normalize(
    'NFC', text.replace('\r\n', '\n').replace('\r', '\n').replace('\x0c', '\n')
  )
  text = _UNSEEN.sub('', text)
  text = re.sub(r'[^\S\n]+$', '', text, flags=re.MULTILINE)
  text = re.sub(r'\n{3,}', '\n\n', text).strip('\n')
  return f'{text}\n' if text else ''


def han_share(text: str) -> float:
  """The share of Chinese characters among all letters."""
  letters = sum(character.isalpha() for character in text)
  return len(_HAN.findall(text)) / letters if letters else 0.0


def without_boilerplate(texts: Sequence[str]) -> list[str]:
  """`texts` of one source, without the long paragraphs that more than three of them share."""
  paragraphs_of = [text.split('\n\n') for text in texts]
  shared = Counter(
    key for paragraphs in paragraphs_of for key in {_key(part) for part in paragraphs}
  )
  keep = lambda part: shared[_key(part)] <= _BOILERPLATE or len(part.encode()) < _LONG
  return [normalise('\n\n'.join(filter(keep, paragraphs))) for paragraphs in paragraphs_of]


class Duplicates:
  """Remembers the texts that it has let through."""

  def __init__(self):
    self._texts: set[bytes] = set()
    self._paragraphs: set[bytes] = set()

  def is_new(self, text: str) -> bool:
    """False if the text was seen before, or if more than half of its long paragraphs,
    by bytes, were.

    Texts and paragraphs are compared by their letters and digits alone, in lower case.
    """
    whole = _key(text)
    long_ones = {
      _key(part): len(part.encode()) for part in text.split('\n\n') if len(part.encode()) >= _LONG
    }
    seen = sum(size for key, size in long_ones.items() if key in self._paragraphs)
    if whole in self._texts or seen > _NEAR * sum(long_ones.values()):
      return False
    self._texts.add(whole)
    self._paragraphs.update(long_ones)
    return True


def capped(texts: Sequence[str], size: int) -> list[str]:
  """A sample of whole texts with at most `size` bytes together, chosen evenly by a hash of the
  text, in their order.
  """
  by_hash = sorted(
    range(len(texts)), key=lambda i: hashlib.blake2b(texts[i].encode(), digest_size=16).digest()
  )
  kept, room = [], size
  for i in by_hash:
    room -= len(texts[i].encode())
    if room < 0:
      break
    kept.append(i)
  return [texts[i] for i in sorted(kept)]


def _key(text):
  letters = ''.join(character for character in text.casefold() if character.isalnum())
  return hashlib.blake2b(letters.encode(), digest_size=8).digest()
