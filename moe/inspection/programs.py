"""The compiled forward pass: a batch of windows → what was asked for, cut back into texts.

B rows, L tokens a row or a text, N layers, D model width, E experts, K chosen, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe.data.packing import Batch
from moe.data.tokenizers import Tokenizer
from moe.inspection.texts import Place, Text, batches, check_batch_size, windows
from moe.losses.cross_entropy import token_losses
from moe.model import Transformer
from moe.parallel.feeding import batch_parts, place_whole
from moe.parallel.sharding import replicated
from moe.routers import Forced


class Wanted(NamedTuple):
  """What to compute for every token: which fields of `Found` to fill."""

  logits: bool = False
  losses: bool = False
  hidden: bool = False
  choices: bool = False
  affinities: bool = False


class Found(NamedTuple):
  """The results for one text, or one window. None: not asked for. Tokens are the last axis but one,
  and the only axis of losses.
  """

  logits_LV: Any = None  # float32
  losses_L: Any = None  # float32, nats of the target
  hidden_NLD: Any = None  # float32, exactly the compute type's values; the embedding and N blocks
  experts_NLK: Any = None  # int32
  gates_NLK: Any = None  # float32
  affinities_NLE: Any = None  # float32


class TokenLoss(NamedTuple):
  """The losses of a text's predicted tokens."""

  # int32, the tokens that are predicted: of a text t1 … tn and EOS, of ids all but the first.
  tokens_L: np.ndarray
  losses_L: np.ndarray  # float32, nats of each
  # int32, UTF-8 bytes that each stands for, 0 for EOS; None without a tokenizer.
  bytes_L: np.ndarray | None


class TextRouting(NamedTuple):
  """The choices of one text: those of every token read, in every MoE layer, best first."""

  experts_NLK: np.ndarray  # int32
  gates_NLK: np.ndarray  # float32, the factors of the experts' results
  affinities_NLE: np.ndarray | None = None  # float32, to all experts by the router's convention


class Model(NamedTuple):
  """What a forward pass needs of a run. `context`: a context manager that puts its mesh in use."""

  model: Transformer
  params: dict
  mesh: Mesh | None
  context: Callable[[], Any]


def of_texts(
  model: Model,
  texts: list[Text],
  wanted: Wanted,
  batch_size: int,
  forced: list[Forced] | None = None,
) -> list[Found]:
  """The `Found` of every text.

  forced: the choices of every text, (N, L, K); no text may then be longer than a window.
  """
  check_batch_size(batch_size)
  # Rows of about the same length need the least padding.
  places = sorted(windows(texts, model.model.config), key=lambda p: len(p.window.tokens_N))
  parts: list[list[tuple[int, Found]]] = [[] for _ in texts]
  for place, found in of_windows(model, places, wanted, batch_size, forced):
    parts[place.number].append((place.begin, found))
  in_order = ([found for _, found in sorted(part, key=lambda p: p[0])] for part in parts)
  return [Found(*map(_joined, zip(*part, strict=True), _AXES)) for part in in_order]


def of_windows(
  model: Model,
  places: Iterable[Place],
  wanted: Wanted,
  batch_size: int,
  forced: list[Forced] | None = None,
) -> Iterator[tuple[Place, Found]]:
  """Yields every window, in order, with the `Found` of the tokens that it scores; computes a batch
  at a time.
  """
  config = model.model.config
  mesh = model.mesh if model.mesh is not None and model.mesh.size > 1 else None
  run = _compiled(model.model, wanted, mesh)
  parts = batch_parts(mesh.shape) if mesh else 1
  for held, batch in batches(places, batch_size, config, parts):
    given = forced and _forced(held, forced, batch)
    batch, given = place_whole(batch, mesh), given and place_whole(given, mesh)
    with model.context():
      results = jax.device_get(run(model.params, batch, given))
    for row, place in enumerate(held):
      scored = slice(place.window.first_scored, len(place.window.tokens_N))
      yield place, _of_row(results, row, scored)


def token_loss(text: Text, found: Found, tokenizer: Tokenizer | None) -> TokenLoss:
  count = len(text.targets)
  bytes_L = None
  if tokenizer is not None:
    size_V = np.array([len(piece) for piece in tokenizer.piece_bytes], np.int32)
    # Ids above the tokenizer's vocabulary are padding and stand for no bytes.
    is_piece_L = text.targets < len(size_V)
    bytes_L = np.where(is_piece_L, size_V[np.where(is_piece_L, text.targets, 0)], 0)
  return TokenLoss(text.targets, found.losses_L[:count], bytes_L)


def text_routing(found: Found) -> TextRouting:
  return TextRouting(found.experts_NLK, found.gates_NLK, found.affinities_NLE)


# The axis of tokens in each field of Found.
_AXES = Found(0, 0, 1, 1, 1, 1)


def _joined(parts, axis):
  return None if parts[0] is None else np.concatenate(parts, axis=axis)


def _of_row(results, row, scored):
  """The `Found` of one row's tokens. Copies them: a view would keep the whole batch in memory for
  as long as any of its texts.
  """
  ours = [None if x is None else x[row] for x in results]
  cut = [
    None if x is None else x[(*[slice(None)] * axis, scored)].copy()
    for x, axis in zip(ours, _AXES, strict=True)
  ]
  return Found(*cut)


def _forced(places, forced, batch):
  """Forced (B, L, N, K), −1 where a row has no token."""
  layers, _, chosen = forced[0].experts_BLK.shape
  shape = (*batch.tokens_BL.shape, layers, chosen)
  experts = np.full(shape, -1, np.int32)
  gates = None if forced[0].gates_BLK is None else np.zeros(shape, np.float32)
  for row, place in enumerate(places):
    ours = forced[place.number]
    length = ours.experts_BLK.shape[1]
    experts[row, :length] = ours.experts_BLK.swapaxes(0, 1)
    if gates is not None:
      gates[row, :length] = ours.gates_BLK.swapaxes(0, 1)
  return Forced(experts, gates)


@functools.lru_cache(maxsize=64)
def _compiled(model: Transformer, wanted: Wanted, mesh: Mesh | None):
  """(params, batch, Forced (B, L, N, K) or None) → `Found` with a leading axis B."""
  probe = model.probe._replace(
    choices=wanted.choices, affinities=wanted.affinities, hidden=wanted.hidden
  )
  probing, config = Transformer(model.config, probe), model.config
  by_row = lambda x: None if x is None else jnp.moveaxis(x, 1, 0)

  def run(params, batch: Batch, forced: Forced | None):
    if forced is not None:
      forced = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), forced)
    inputs = batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL
    hidden_BLD, aside, _ = probing.apply({'params': params}, *inputs, forced=forced)
    logits = losses = hidden = None
    choices = (None, None, None) if aside.choices is None else aside.choices
    if wanted.logits:
      logits = probing.apply({'params': params}, hidden_BLD, method='logits')
    if wanted.losses:
      losses = token_losses(hidden_BLD, params['head'], batch.targets_BL, config.train.loss_chunk)
    if wanted.hidden:
      hidden = aside.hidden_BLD.astype(jnp.float32)
    return Found(logits, losses, *map(by_row, (hidden, *choices)))

  return jax.jit(run, out_shardings=replicated(mesh))
