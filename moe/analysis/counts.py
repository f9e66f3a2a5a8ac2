"""Counting choices: by sequence, by class of token, and by pairs of experts chosen together.

N MoE layers, B sequences, L tokens each, E routed experts, K chosen by a token, C token classes,
V vocabulary, X sequences of all held-out text.
"""

import re
import unicodedata
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from moe.analysis.interventions import Intervention, routing
from moe.config import Config
from moe.data.packing import Batch
from moe.data.store import PreparedData
from moe.data.tokenizers import Tokenizer
from moe.evaluate import held_out_batches
from moe.parallel.sharding import replicated

# The class of a token depends on its piece alone. The first class that fits counts.
TOKEN_CLASSES = (
  'control',  # beginning or end of a document, unknown, padding of the vocabulary
  'byte',  # part of a character that has no piece
  'space',  # spaces and newlines only
  'cjk',  # has a Chinese, Japanese or Korean letter
  'word',  # has a letter and begins with a space: the beginning of a word
  # Has a letter and no space before it: a word's continuation, or its beginning after a newline or
  # a symbol.
  'letters',
  'digit',
  'symbol',  # punctuation and all else
)
# How the Unicode names of CJK characters begin.
_CJK = ('CJK', 'IDEOGRAPHIC', 'HIRAGANA', 'KATAKANA', 'HANGUL')
_SPACE = '\u2581'  # SentencePiece's sign for a space


class Counts(NamedTuple):
  """Counts of a batch's tokens, int32. To join batches, add up the sums
  and concatenate the sequences.
  """

  sequences_NBE: jax.Array  # tokens of the sequence that chose the expert
  classes_NCE: jax.Array  # tokens of the class that chose it
  class_tokens_C: jax.Array  # tokens of the class
  pairs_NEE: jax.Array  # tokens that chose both; on the diagonal, that chose the expert
  next_NCE: jax.Array  # as classes_NCE, by the class of the next token


class Survey(NamedTuple):
  """Counts of held-out text, int64."""

  domains: tuple[str, ...]
  domain_X: np.ndarray  # index of each sequence's domain
  sequences_NXE: np.ndarray
  classes_NCE: np.ndarray
  class_tokens_C: np.ndarray
  pairs_NEE: np.ndarray
  next_NCE: np.ndarray


def token_class(piece: str, is_text: bool) -> str:
  """One of TOKEN_CLASSES, for a piece as in `Tokenizer.pieces` and `Tokenizer.is_text`."""
  letters = [character for character in piece if character.isalpha()]
  if not is_text:
    return 'control'
  if re.fullmatch('(<0x[0-9A-F]{2}>)+', piece):
    return 'byte'
  if not piece.replace(_SPACE, '').strip():
    return 'space'
  if any(unicodedata.name(letter, '').startswith(_CJK) for letter in letters):
    return 'cjk'
  if letters:
    return 'word' if piece[0] == _SPACE or piece[0].isspace() else 'letters'
  return 'digit' if any(character.isdigit() for character in piece) else 'symbol'


def token_classes(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
  """class_V int32: the index in TOKEN_CLASSES of every token id.
  A model's vocabulary may be larger than the tokenizer's.
  """
  class_V = np.full(vocab_size, TOKEN_CLASSES.index('control'), np.int32)
  named = zip(tokenizer.pieces, tokenizer.is_text, strict=True)
  class_V[: tokenizer.vocab_size] = [
    TOKEN_CLASSES.index(token_class(piece, is_text)) for piece, is_text in named
  ]
  return class_V


def count(
  config: Config,
  params: dict,
  batch: Batch,
  class_V: np.ndarray,
  intervention: Intervention | None = None,
) -> Counts:
  """Counts the choices of a batch's tokens. Pure, to be jitted. `class_V`: from `token_classes`.

  Counts the tokens whose target is scored, so that over all held-out text each counts once, and of
  their experts those that they take (`moe.gate_mass`).
  """
  choices = routing(config, params, batch, intervention)
  is_counted_BL = batch.weights_BL > 0
  is_class_BLC, is_next_BLC = (
    counted_classes(ids_BL, batch, class_V) for ids_BL in (batch.tokens_BL, batch.targets_BL)
  )

  def of_layer(taken_BLK):
    chosen_BLE = jax.nn.one_hot(taken_BLK, config.moe.num_experts).sum(axis=2)
    by = lambda is_BLC: jnp.einsum('blc,ble->ce', is_BLC, chosen_BLE)
    pairs_EE = jnp.einsum('bli,blj->ij', chosen_BLE, chosen_BLE)
    return chosen_BLE.sum(axis=1), by(is_class_BLC), pairs_EE, by(is_next_BLC)

  # Float sums and products are fast on every machine. Of zeros and ones they are exact
  # below 2²⁴ tokens.
  found = lax.map(of_layer, choices.taken(is_counted_BL))
  sequences_NBE, classes_NCE, pairs_NEE, next_NCE = found
  class_tokens_C = is_class_BLC.sum(axis=(0, 1))
  counts = Counts(sequences_NBE, classes_NCE, class_tokens_C, pairs_NEE, next_NCE)
  return jax.tree.map(lambda x: x.astype(jnp.int32), counts)


def counted_classes(ids_BL: jax.Array, batch: Batch, class_V: np.ndarray) -> jax.Array:
  """float32 is_class_BLC: 1 at the class of each id; all 0 where the batch's target is not scored,
  which is then not counted.
  """
  class_BL = jnp.where(batch.weights_BL > 0, jnp.asarray(class_V)[ids_BL], -1)  # −1: of no class
  return jax.nn.one_hot(class_BL, len(TOKEN_CLASSES))


def survey(
  config: Config,
  params: dict,
  data: PreparedData,
  intervention: Intervention | None = None,
  mesh: Mesh | None = None,
  max_batches: int | None = None,
) -> Survey:
  """Counts the choices of all held-out documents, or of at most `max_batches` batches a domain.

  `mesh`: the mesh in use, if params lie on one.
  """
  class_V = token_classes(data.tokenizer, config.model.vocab_size)
  of_batch = jax.jit(
    lambda params, batch: count(config, params, batch, class_V, intervention),
    out_shardings=replicated(mesh),
  )
  domains, domain_X, sequences, sums = data.held_out_domains, [], [], 0
  for domain, batch in held_out_batches(data, config, mesh, max_batches):
    sequences_NBE, *rest = (x.astype(np.int64) for x in jax.device_get(of_batch(params, batch)))
    real_B = sequences_NBE.any(axis=(0, 2))  # rows of padding fill a domain's last batch
    domain_X += [domains.index(domain)] * real_B.sum()
    sequences.append(sequences_NBE[:, real_B])
    sums = [old + new for old, new in zip(sums, rest, strict=True)] if sums else rest
  return Survey(domains, np.array(domain_X), np.concatenate(sequences, axis=1), *sums)
