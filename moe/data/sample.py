"""A sample of text of bounded size, drawn evenly in one pass over a corpus of any size."""

import hashlib
import heapq

_PART = 10_000  # characters; the unit that is drawn


class TextSample:
  """Keeps the parts of text whose hash is lowest: the result depends on the text alone,
  not on its order.

  Every domain gets the same share of the sample, whatever its weight or size;
  the others get what a small domain leaves.
  """

  def __init__(self, size: int):
    """`size`: UTF-8 bytes of the whole sample."""
    self._size = size
    # A heap of (-hash, bytes, part) for each domain, with the next part to drop on top.
    self._kept: dict[str, list[tuple[int, int, str]]] = {}
    self._total: dict[str, int] = {}

  def add(self, domain: str, text: str) -> None:
    kept = self._kept.setdefault(domain, [])
    for part in _parts(text):
      raw = part.encode()
      digest = hashlib.blake2b(raw, digest_size=8).digest()
      heapq.heappush(kept, (-int.from_bytes(digest, 'big'), len(raw), part))
      self._total[domain] = self._total.get(domain, 0) + len(raw)
      while self._total[domain] - kept[0][1] >= self._size:
        self._total[domain] -= heapq.heappop(kept)[1]

  def texts(self) -> list[str]:
    """The sample, at most about `size` bytes."""
    chosen, left = [], self._size
    smallest_first = sorted(self._total, key=lambda domain: (self._total[domain], domain))
    for position, domain in enumerate(smallest_first):
      room = left // (len(smallest_first) - position)
      for _, size, part in sorted(self._kept[domain], reverse=True):
        if room <= 0:
          break
        chosen.append(part)
        room -= size
        left -= size
    return chosen


def _parts(text):
  """Cuts `text` into parts of about _PART characters, at the end of a line where there is one."""
  begin = 0
  while begin < len(text):
    end = text.rfind('\n', begin, begin + _PART) + 1
    end = end if end > begin and begin + _PART < len(text) else begin + _PART
    yield text[begin:end]
    begin = end
