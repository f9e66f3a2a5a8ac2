"""Generation up to the first of several stop strings.

Rows are generated in pieces of growing length, and those that have said a stop string leave: the
compiled loop knows tokens only, and a string may begin and end anywhere in them.
"""

from collections.abc import Sequence

from moe.generate import Sampling, generate_tokens, text_after
from moe.inspection import Run

_FIRST_PIECE = 16  # new tokens; each further piece has twice as many


def until(
  run: Run,
  prompts: Sequence[Sequence[int]],
  stops: Sequence[str],
  max_new_tokens: int,
  sampling: Sampling,
  tokens: int,
) -> list[str]:
  """The text after each prompt, up to the first of `stops` in it, or the end of the document.

  prompts: ids, BOS first; with `max_new_tokens` more at most data.seq_len of them.
  tokens: of prompts and answers at once, about. Greedy answers do not depend on it.
  """
  answers: list[list[int]] = [[] for _ in prompts]
  open_rows, piece, said = list(range(len(prompts))), _FIRST_PIECE, 0
  while open_rows and said < max_new_tokens:
    piece = min(piece, max_new_tokens - said)
    going_on = []
    for numbers in _batches(open_rows, prompts, said + piece, tokens):
      given = [[*prompts[number], *answers[number]] for number in numbers]
      with run.on_mesh():
        new_BN, counts_B = generate_tokens(run, given, piece, sampling, seed=said)
      for number, ids, count in zip(numbers, new_BN, counts_B, strict=True):
        answers[number] += ids[:count].tolist()
        ended = count < piece or answers[number][-1] == run.tokenizer.eos_id
        if not ended and not _stopped(_text(run, prompts[number], answers[number]), stops):
          going_on.append(number)
    open_rows, said, piece = going_on, said + piece, 2 * piece
  return [cut(_text(run, prompt, ids), stops) for prompt, ids in zip(prompts, answers, strict=True)]


def cut(text: str, stops: Sequence[str]) -> str:
  """What stands before the first of the stop strings."""
  found = [text.find(stop) for stop in stops if stop]
  return text[: min((place for place in found if place >= 0), default=len(text))]


def _stopped(text, stops):
  return any(stop in text for stop in stops if stop)


def _text(run, prompt, ids):
  eos_id = run.tokenizer.eos_id
  return text_after(run.tokenizer, prompt, ids[:-1] if ids and ids[-1] == eos_id else ids)


def _batches(numbers, prompts, new_tokens, tokens):
  """Those of about one length together, the longest first."""
  numbers = sorted(numbers, key=lambda number: (-len(prompts[number]), number))
  while numbers:
    rows = max(tokens // (len(prompts[numbers[0]]) + new_tokens), 1)
    yield numbers[:rows]
    numbers = numbers[rows:]
