"""Replays choices from elsewhere: forces the routers to make them.

N MoE layers, L tokens of a text, E routed experts, K chosen by a token.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe.errors import UserError
from moe.inspection.programs import TextRouting, TokenLoss
from moe.inspection.texts import Text
from moe.intervention import check_room
from moe.model import Transformer
from moe.routers import Forced


class Replay(NamedTuple):
  """The logits and losses of one text under given choices."""

  logits_LV: np.ndarray  # float32
  loss: TokenLoss


def forced_choices(
  model: Transformer, texts: list[Text], routing: Sequence[TextRouting], gates: bool
) -> tuple[Transformer, list[Forced]]:
  """The model with as many experts a token as were given, and the choices to force on every text.

  UserError, one line, for routing that is not of these texts, or that this model cannot follow.
  """
  config = model.config
  layers = config.model.num_moe_layers
  if len(routing) != len(texts):
    raise UserError(f'routing is of {len(routing)} texts, and there are {len(texts)}')
  given = [
    Forced(np.asarray(each.experts_NLK), np.asarray(each.gates_NLK, np.float32) if gates else None)
    for each in routing
  ]
  chosen = given[0].experts_BLK.shape[-1] if given[0].experts_BLK.ndim else 0
  for number, (text, each) in enumerate(zip(texts, given, strict=True)):
    length = len(text.tokens_L)
    if length > config.data.seq_len:
      raise UserError(
        f'text {number} has {length} tokens, more than the context of data.seq_len='
        f'{config.data.seq_len}: it is read in windows that overlap, where a token has several '
        'choices; replay shorter ones'
      )
    for name, array in (('experts_NLK', each.experts_BLK), ('gates_NLK', each.gates_BLK)):
      if array is not None and array.shape != (layers, length, chosen):
        raise UserError(
          f'routing of text {number}: {name} has the shape {array.shape}, and must have '
          f'{(layers, length, chosen)}: MoE layers, tokens, experts a token'
        )
    _check(number, each.experts_BLK, config.moe.num_experts)
  if not 1 <= chosen <= config.moe.num_experts:
    raise UserError(
      f'routing has {chosen} experts a token, and must have 1 to '
      f'moe.num_experts={config.moe.num_experts}'
    )
  check_room(config.moe, chosen, masked=0)  # for tokens that keep the router's choices
  moe = dataclasses.replace(config.moe, experts_per_token=chosen)
  return model.clone(config=dataclasses.replace(config, moe=moe)), given


def _check(number, experts_NLK, num_experts):
  """Raises UserError unless every token has distinct experts that exist, or nothing but −1."""
  if experts_NLK.dtype.kind not in 'iu':
    raise UserError(f'routing of text {number}: experts_NLK must be whole numbers')
  free_NL = (experts_NLK == -1).all(axis=-1)
  exist_NL = ((experts_NLK >= 0) & (experts_NLK < num_experts)).all(axis=-1)
  sorted_NLK = np.sort(experts_NLK, axis=-1)
  distinct_NL = (sorted_NLK[..., 1:] != sorted_NLK[..., :-1]).all(axis=-1)
  wrong = np.argwhere(~(free_NL | (exist_NL & distinct_NL)))
  if len(wrong):
    layer, token = wrong[0]
    raise UserError(
      f'routing of text {number}: layer {layer}, token {token} has the experts '
      f'{experts_NLK[layer, token].tolist()}; they must be distinct, from 0 to {num_experts - 1}, '
      'or all -1 for those of the router itself'
    )
