"""A trained model opened for use, with a method for every question about it.

B texts, L tokens of one, N layers, D model width, E routed experts, K chosen by a token,
V vocabulary.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.sharding import Mesh

from moe.analysis import Intervention
from moe.analysis.interventions import check_routed
from moe.config import Config
from moe.data.store import PreparedData
from moe.data.tokenizers import Tokenizer
from moe.evaluate import Evaluation, Evaluator
from moe.generate import ROWS, Completion, Sampling, generate
from moe.inspection import options as options_lib
from moe.inspection import programs, replay, table
from moe.inspection.programs import Found, TextRouting, TokenLoss, Wanted
from moe.inspection.replay import Replay
from moe.inspection.texts import Text, Texts, read
from moe.model import Transformer
from moe.parallel import mesh as mesh_lib
from moe.train_step import forward_of

if TYPE_CHECKING:  # importing it takes 0.3 s
  import pyarrow


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A trained model: use the methods below, or `run.model.apply({'params': run.params}, …)`.

  `texts`, in every method that takes it, is one text, a list of texts, or token ids: one sequence,
  a list of sequences of any lengths, or an array (B, L). One gives one answer, several give a list.
  A text is read as BOS t1 … tn, and its end is predicted, too; ids are read as they are. A text
  longer than data.seq_len is read in overlapping windows, as held-out text is scored, and each
  token's answer is from the window that scores it. `batch_size`: windows computed at once; it
  changes time and memory, not the answer.
  """

  model: Transformer
  params: dict
  tokenizer: Tokenizer | None  # None: the weights were converted without one
  config: Config
  step: int
  mesh: Mesh | None = None  # where the parameters lie, if not on one device

  def __iter__(self) -> Iterator:
    """model, params, tokenizer, config, step = run."""
    return iter((self.model, self.params, self.tokenizer, self.config, self.step))

  def tokens(self, texts: Texts) -> np.ndarray | list[np.ndarray]:
    """int32 (L,) a text: the ids that the model reads. The L of every answer counts them."""
    asked = self._read(texts)
    return _answer(asked.is_one, [text.tokens_L for text in asked.texts])

  def logits(self, texts: Texts, batch_size: int = 8) -> np.ndarray | list[np.ndarray]:
    """float32 (L, V) a text: row i predicts the token after the i-th.
    A batch takes B · L · V floats on the device.
    """
    return self._ask(texts, Wanted(logits=True), lambda _, found: found.logits_LV, batch_size)

  def loss(self, texts: Texts, batch_size: int = 8) -> TokenLoss | list[TokenLoss]:
    """A text's `TokenLoss`: nats of every predicted token, n + 1 for a text (its end is one),
    L − 1 for ids; with the bytes that each stands for.

    The losses of a text add up to what launch.evaluate has for it.
    """
    return self._ask(texts, Wanted(losses=True), self._token_loss, batch_size)

  def hidden(self, texts: Texts, batch_size: int = 8) -> np.ndarray | list[np.ndarray]:
    """float32 (N + 1, L, D) a text: the residual stream, embedded and after each of N blocks.

    The values are exactly those of model.dtype. `model.finish` and `model.logits` turn the last
    one into `logits`.
    """
    return self._ask(texts, Wanted(hidden=True), lambda _, found: found.hidden_NLD, batch_size)

  def routing(
    self, texts: Texts, affinities: bool = False, batch_size: int = 8
  ) -> TextRouting | list[TextRouting]:
    """A text's `TextRouting`: experts (N, L, K) and gates (N, L, K) of the N MoE layers, best
    first; with `affinities` also those to all experts (N, L, E), before the router's `gates`.

    UserError for a model without routed experts.
    """
    check_routed(self.model.config)
    wanted = Wanted(choices=True, affinities=affinities)
    return self._ask(texts, wanted, lambda _, found: programs.text_routing(found), batch_size)

  def routing_table(
    self, texts: Texts, affinities: bool = False, batch_size: int = 8
  ) -> 'pyarrow.Table':
    """One row a token and MoE layer, in this order: document, position, layer.

    document, position, token, layer: int32, from 0; layers count MoE layers, as in `routing`.
    piece: string, as the tokenizer writes it; null without one.
    experts, gates[, affinities]: lists of K int32, K float32, E float32.
    loss: float32, nats of the token after this one; null after the last of given ids.
    """
    check_routed(self.model.config)
    asked = self._read(texts)
    wanted = Wanted(losses=True, choices=True, affinities=affinities)
    found = programs.of_texts(self._parts(), asked.texts, wanted, batch_size)
    return table.of_texts(self._source(), asked.texts, found, affinities)

  def save_routing(
    self, data: PreparedData, path: str | os.PathLike, affinities: bool = False
  ) -> int:
    """Writes the routing of all held-out text to a Parquet file; returns the number of rows.

    The columns are `domain` and those of `routing_table`; `document` counts within a domain. A
    batch (evaluation.batch_size windows) is a row group, so that memory does not grow with the
    text. The losses of one layer's rows add up to what launch.evaluate has. The file appears once
    it is complete. UserError if it cannot be written, or exists already.
    """
    return table.save(self._source(), data, path, affinities)

  def replay(
    self,
    texts: Texts,
    routing: TextRouting | Sequence[TextRouting],
    gates: bool = False,
    batch_size: int = 8,
  ) -> Replay | list[Replay]:
    """A text's logits (L, V) and loss with given experts, for example another run's `routing`.

    Gates come from this model's own affinities to those experts, or with `gates` from `routing`.
    K may differ from the trained one. A token whose experts are all −1 is left to the router.
    UserError for routing of other texts, and for texts longer than data.seq_len.
    """
    check_routed(self.model.config)
    asked = self._read(texts)
    several = [routing] if isinstance(routing, TextRouting) else list(routing)
    if not several and not asked.texts:
      return []
    model, forced = replay.forced_choices(self.model, asked.texts, several, gates)
    options_lib.check_room(model)
    wanted, parts = Wanted(logits=True, losses=True), self._parts()._replace(model=model)
    found = programs.of_texts(parts, asked.texts, wanted, batch_size, forced)
    answers = [
      Replay(each.logits_LV, self._token_loss(text, each))
      for text, each in zip(asked.texts, found, strict=True)
    ]
    return _answer(asked.is_one, answers)

  def generate(
    self,
    prompts: str | Sequence[str],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    batch_size: int = ROWS,
  ) -> Completion | list[Completion]:
    """A `Completion` of each prompt: its text, tokens, and what stopped it. See `moe.generate`;
    temperature 0 is greedy, `batch_size` is the number of prompts at once.
    """
    several = [prompts] if isinstance(prompts, str) else list(prompts)
    sampling = Sampling(temperature, top_k, top_p)
    with self.on_mesh():
      completions = generate(self, several, max_new_tokens, sampling, seed, stop, batch_size)
    return _answer(isinstance(prompts, str), completions)

  def evaluate(self, data: PreparedData, max_batches: int | None = None) -> Evaluation:
    """Scores all held-out documents, or at most `max_batches` batches a domain.
    `data`: from `moe.data.store.open_held_out`.
    """
    forward = lambda _, params, batch: forward_of(self.model, params, batch)
    with self.on_mesh():
      return Evaluator(self.config, data, self.mesh, forward)(self.params, max_batches)

  def with_config(self, **options: object) -> 'Run':
    """A Run with keys of moe.* changed: `run.with_config(experts_per_token=4)`.

    UserError, by name, for a key that would change the shapes of parameters,
    or that does not affect what a trained model computes.
    """
    config = options_lib.with_options(self.config, self.params, options)
    return self._with(self.model.clone(config=config), self.params)

  def intervene(self, intervention: Intervention | None = None, **changes: object) -> 'Run':
    """A Run under an intervention, with all of these methods:
    `run.intervene(masked_share=1 / 16)`. See `moe.analysis.Intervention`.

    UserError for an intervention that this model does not allow.
    """
    asked = options_lib.asked_for(intervention, changes)
    return self._with(*options_lib.intervened(self.config, self.model, self.params, asked))

  @contextlib.contextmanager
  def on_mesh(self) -> Iterator[None]:
    """Inside, everything is laid out on the run's mesh."""
    if self.mesh is None:
      yield
      return
    with mesh_lib.use(self.mesh, self.config.mesh.zero):
      yield

  def _with(self, model, params):
    options_lib.check_room(model)
    return dataclasses.replace(self, model=model, params=params, config=model.config)

  def _read(self, texts):
    return read(texts, self.tokenizer, self.config.model.vocab_size)

  def _parts(self):
    return programs.Model(self.model, self.params, self.mesh, self.on_mesh)

  def _source(self):
    return table.Source(self._parts(), self.tokenizer, self.step)

  def _ask(
    self,
    texts: Texts,
    wanted: Wanted,
    answer: Callable[[Text, Found], object],
    batch_size: int,
  ):
    asked = self._read(texts)
    found = programs.of_texts(self._parts(), asked.texts, wanted, batch_size)
    return _answer(asked.is_one, list(map(answer, asked.texts, found)))

  def _token_loss(self, text, found):
    return programs.token_loss(text, found, self.tokenizer)


def _answer(is_one, answers):
  return answers[0] if is_one else answers
