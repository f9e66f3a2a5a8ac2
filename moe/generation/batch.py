"""Continuous batching: a row that has ended makes room for a prompt that waits."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from moe.config import Config
from moe.data.tokenizers import Tokenizer
from moe.generation import programs, weights
from moe.generation.programs import Prompt, Rows
from moe.generation.sampling import Drawing, Sampling
from moe.model import Transformer


class Trained(Protocol):
  """What generation needs of a run. With parameters on a mesh, generate inside `run.on_mesh()`."""

  model: Transformer
  params: dict
  tokenizer: Tokenizer | None
  config: Config


class Request(NamedTuple):
  """What is asked for, the same for every prompt."""

  max_new_tokens: int
  sampling: Sampling
  seed: int
  rows: int  # prompts at once, at most
  # The token to stop after; None: EOS. No other control piece is drawn.
  end_id: int | None = None
  # Whether a prompt has enough new tokens: called with its number and them, after each token.
  is_enough: Callable[[int, Sequence[int]], bool] = lambda number, new_ids: False


@dataclasses.dataclass
class _Row:
  """A prompt in progress."""

  number: int
  length: int  # tokens of the prompt
  new: list[int]


def new_tokens(
  run: Trained, prompts: Sequence[Sequence[int]], request: Request
) -> Iterator[tuple[int, int]]:
  """(number of a prompt, its next token) as soon as it is chosen, up to and including the last.

  A completion ends with `end_id`, after `max_new_tokens`, when it is enough, or when the context is
  full: S positions yield up to S + 1 − length new tokens, as the last one needs no position of its
  own. A completion depends neither on the other prompts nor on `rows`.
  """
  waiting = deque(Prompt(number, ids) for number, ids in enumerate(prompts))
  batch = _Batch(run, request, min(request.rows, len(waiting)))
  while waiting or batch.rows:
    admitted = [waiting.popleft() for _ in range(min(len(batch.free), len(waiting)))]
    yield from batch.admit(admitted) if admitted else batch.step()


class _Batch:
  """Rows in progress and their cache, which has B rows for prompts in at most `places` places."""

  def __init__(self, run: Trained, request: Request, places: int):
    self._run, self._request = run, request
    self._places, self._size = range(places), programs.rows_for(max(places, 1))
    end_id = run.tokenizer.eos_id if request.end_id is None else request.end_id
    self._end_id = end_id
    vocab_size = run.config.model.vocab_size
    self._drawing = Drawing.of(request.sampling, run.tokenizer, vocab_size, end_id, request.seed)
    self._params = weights.by_layer(run.config, run.params)
    self.rows: dict[int, _Row] = {}  # by place in the batch
    self._cache, self._positions = None, 0

  @property
  def free(self) -> list[int]:
    """Places without a prompt."""
    return [place for place in self._places if place not in self.rows]

  def admit(self, prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
    """Begins prompts, at most as many as there are free places; (number, first token) of each."""
    run, places = self._run, self.free[: len(prompts)]
    self._make_room(max(len(prompt.ids) for prompt in prompts))
    begin, params = programs.begun, run.params
    if weights.on_accelerator():
      begin, params = programs.begun_in_place, self._params
    chosen_A, self._cache = begin(run.model, params, self._drawing, prompts, places, self._cache)
    chosen = {}
    for place, token, (number, ids) in zip(places, chosen_A, prompts, strict=True):
      self.rows[place], chosen[place] = _Row(number, len(ids), []), token
    return self._note(chosen)

  def step(self) -> list[tuple[int, int]]:
    """Draws one more token for every row; (number, token) of each."""
    rows = Rows(*(np.zeros(self._size, np.int32) for _ in Rows._fields))
    for place, row in self.rows.items():
      count = len(row.new)
      values = row.new[-1], row.length + count - 1, row.number, count
      for array_B, value in zip(rows, values, strict=True):
        array_B[place] = value
    self._make_room(int(rows.positions_B.max()) + 1)
    chosen_B, self._cache = programs.step(
      self._run.model, self._params, self._drawing, rows, self._cache
    )
    chosen_B = np.asarray(chosen_B)
    return self._note({place: chosen_B[place] for place in self.rows})

  def _note(self, chosen):
    noted = []
    for place, token in chosen.items():
      row = self.rows[place]
      row.new.append(int(token))
      noted.append((row.number, row.new[-1]))
      if self._has_ended(row):
        del self.rows[place]
    return noted

  def _has_ended(self, row):
    count = len(row.new)
    return (
      row.new[-1] == self._end_id
      or count >= self._request.max_new_tokens
      or row.length + count > self._run.config.data.seq_len
      or self._request.is_enough(row.number, row.new)
    )

  def _make_room(self, positions):
    """Grows the cache to hold so many positions a row, in steps."""
    room = programs.room_for(self._run.config, positions)
    if self._cache is None:
      self._cache = programs.empty(self._run.model, self._size, room)
    elif room > self._positions:
      self._cache = programs.grown(self._cache, room)
    self._positions = max(room, self._positions)
