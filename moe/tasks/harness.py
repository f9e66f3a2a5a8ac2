"""A run as a model of EleutherAI's lm-evaluation-harness.

Imports the harness at the top, as loading.py and errors.py do: import these three only when needed.
"""

import contextlib
import functools
import os
import re
from collections import Counter
from collections.abc import Sequence

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from moe.data.chat import Message, open_template, template_of
from moe.data.tokenizers import must_have
from moe.errors import UserError
from moe.generate import Sampling, generate_until
from moe.generation.batch import Request
from moe.inspection import Run
from moe.inspection.programs import Model
from moe.tasks import scoring
from moe.tasks.scoring import Pair

# How many tokens the harness's own backends generate if a task does not say.
_NEW_TOKENS = 256


class Harness(TemplateLM):
  """A run as the harness's model: log-probabilities, rolling ones, and generation.

  Contexts begin with BOS, as documents did in training. A context that is too long for data.seq_len
  is cut on the left, and counted by task in `cut`.
  """

  def __init__(self, run: Run, templated: bool = False):
    """`templated`: prompts are in the chat template that the run was trained in, or else in the
    tokenizer's own. UserError for a run without a tokenizer, or if `templated` without a template.
    """
    super().__init__()
    self._run, self._tokenizer = run, must_have(run.tokenizer)
    # Refuses a run without a template: scores in one that it has never seen say little.
    name = template_of(run.config.data, self._tokenizer) or 'tokenizer'
    self._template = open_template(name, self._tokenizer) if templated else None
    self._encoded: dict[str, list[int]] = {}
    self._asked: list[Instance] = []
    self.max_length = run.config.data.seq_len
    self.cut: Counter[str] = Counter()
    self.tasks: dict = {}  # by name, those that are asked about

  @property
  def eot_token_id(self) -> int:
    return self._tokenizer.eos_id

  @property
  def prefix_token_id(self) -> int:
    return self._tokenizer.bos_id

  @property
  def tokenizer_name(self) -> str:
    return self._tokenizer.sha256

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """The conversation as one string, with control pieces spelt out.

    Without `add_generation_prompt` it ends within the assistant's last turn, which the model goes
    on with.
    """
    turns, begun = [Message(turn['role'], turn['content']) for turn in chat_history], ''
    if not add_generation_prompt and turns[-1].role == 'assistant':
      begun = turns.pop().content
    parts = self._template.parts(turns, asks=True)
    pieces = self._tokenizer.pieces
    said = [part.said if isinstance(part.said, str) else pieces[part.said] for part in parts]
    return ''.join([*said, begun])

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
    """Ids of a text after BOS, or without BOS if `add_special_tokens` is False. BOS is not added
    twice if a chat template spells it.
    """
    ids = self._encoded.get(string)
    if ids is None:
      (ids,) = self._encode([string])
    begun = add_special_tokens is False or (self._template and ids[:1] == [self.prefix_token_id])
    return list(ids) if begun else [self.prefix_token_id, *ids]

  def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list:
    # The strings that `TemplateLM._encode_pair` encodes: white space at the end of a context goes
    # to the continuation.
    contexts = {request.args[0] for request in requests}
    strings = {context.rstrip() for context in contexts}
    strings |= {''.join(request.args[:2]) for request in requests}
    with self._encoded_at_once(sorted(strings)):
      self._asked = requests
      return super().loglikelihood(requests, disable_tqdm=True)

  def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """As the harness does, but a continuation is never empty. Where letters merge across the
    boundary, so that the whole has no more pieces than the context, it is encoded by itself.
    """
    before, after = super()._encode_pair(context, continuation)
    return before, after or self.tok_encode(continuation, add_special_tokens=False)

  def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
    pairs = [self._pair(context, continuation) for _, context, continuation in requests]
    whole = [len(context) for _, context, _ in requests]
    self._count_cut(
      [
        asked
        for asked, pair, length in zip(self._asked, pairs, whole, strict=True)
        if len(pair.context) < length
      ],
      self._asked,
    )
    return [tuple(each) for each in self._score(pairs)]

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = True
  ) -> list[float]:
    """Natural log-probabilities of whole documents, each token once, in the harness's windows."""
    texts = [request.args[0] for request in requests]
    pairs, owners = [], []
    for number, ids in enumerate(self._encode(texts)):
      windows = get_rolling_token_windows(
        ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1
      )
      for window in windows:
        pairs.append(Pair(*make_disjoint_window(window)))
        owners.append(number)
    totals = [0.0] * len(texts)
    for number, found in zip(owners, self._score(pairs), strict=True):
      totals[number] += found.log_probability
    return totals

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
    """The text generated after each context, up to the first of its stop strings."""
    answers: list[str] = [''] * len(requests)
    with self._encoded_at_once(sorted({request.args[0] for request in requests})):
      ids = [self.tok_encode(request.args[0]) for request in requests]
    kwargs = [normalize_gen_kwargs(request.args[1], _NEW_TOKENS) for request in requests]
    cut = []
    for numbers in _alike(kwargs):
      wanted = kwargs[numbers[0]]
      new_tokens = min(wanted['max_gen_toks'], max(self.max_length // 2, 1))
      room = self.max_length - new_tokens
      cut += [number for number in numbers if len(ids[number]) > room]
      stop = wanted['until'] if isinstance(wanted['until'], list) else [wanted['until']]
      rows = self._run.config.evaluation.batch_size
      request = Request(new_tokens, _sampling(wanted), seed=0, rows=rows)
      asked = [ids[number][-room:] for number in numbers]
      with self._run.on_mesh():
        found = generate_until(self._run, asked, request, stop)
      for number, text in zip(numbers, found, strict=True):
        answers[number] = text
    self._count_cut([requests[number] for number in cut], requests)
    return answers

  def _pair(self, context: Sequence[int], continuation: Sequence[int]) -> Pair:
    """The pair, its context cut to fit data.seq_len. UserError for too long a continuation."""
    if len(continuation) > self.max_length:
      raise UserError(
        f'a continuation of {len(continuation)} tokens has no room in the context of '
        f'data.seq_len={self.max_length}: score this run on other tasks'
      )
    most = self.max_length + 1 - len(continuation)
    return Pair(context[-most:], continuation)

  def _score(self, pairs):
    run = self._run
    model = Model(run.model, run.params, run.mesh, run.on_mesh)
    return scoring.score(model, pairs, self._tokens_at_once)

  @property
  def _tokens_at_once(self):
    return self._run.config.evaluation.batch_size * self.max_length

  def _count_cut(self, cut, requests):
    """Counts cut contexts by task. UserError if no question of a task fits, even by itself."""
    counts = Counter(request.task_name for request in cut)
    self.cut += counts
    for name, count in counts.items():
      asked = [request for request in requests if request.task_name == name]
      if count < len(asked) or name not in self.tasks:
        continue
      texts = [self.tasks[name].doc_to_text(request.doc) for request in asked]
      least = min(
        (len(self.tok_encode(text)) for text in texts if isinstance(text, str)), default=0
      )
      if least > self.max_length:
        raise UserError(
          f'task {name}: the shortest question has {least} tokens, and the context is '
          f'data.seq_len={self.max_length}: not one question fits'
        )

  @contextlib.contextmanager
  def _encoded_at_once(self, strings):
    """Encodes these texts in advance, on all threads, for `tok_encode` within the block."""
    self._encoded = dict(zip(strings, self._encode(strings), strict=True))
    try:
      yield
    finally:
      self._encoded = {}

  def _encode(self, strings):
    if self._template:
      return [self._encode_spelt(string) for string in strings]
    return self._tokenizer.encode_batch(strings, _threads())

  def _encode_spelt(self, string):
    """Ids of a text in which control pieces are spelt, as a chat template spells them."""
    ids = []
    for part in re.split(self._control, string):
      control = self._control_ids.get(part)
      ids += [control] if control is not None else self._tokenizer.encode(part) if part else []
    return ids

  @functools.cached_property
  def _control_ids(self):
    pieces = zip(self._tokenizer.pieces, self._tokenizer.is_text, strict=True)
    return {piece: i for i, (piece, is_text) in enumerate(pieces) if piece and not is_text}

  @functools.cached_property
  def _control(self):
    longest_first = sorted(self._control_ids, key=len, reverse=True)
    return re.compile(f'({"|".join(map(re.escape, longest_first))})')


def _alike(kwargs):
  """Groups of request numbers that have equal arguments: each can be generated together."""
  together: dict[str, list[int]] = {}
  for number, each in enumerate(kwargs):
    together.setdefault(repr(sorted(each.items())), []).append(number)
  return together.values()


def _sampling(kwargs):
  if not kwargs.get('do_sample'):
    return Sampling()
  return Sampling(
    kwargs.get('temperature', 1.0), kwargs.get('top_k') or 0, kwargs.get('top_p') or 1.0
  )


def _threads():
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
