"""The choice of experts to tune, as text: '3,17;2;;40,41' lists the experts of each MoE layer,
layers separated by ';'. Configs have this text, and a run keeps it in its config.json. No jax
import.
"""

import itertools
import re
from collections.abc import Iterator, Sequence

KEY = 'finetune.experts'
# The experts of each layer, ascending.
Choice = tuple[tuple[int, ...], ...]
_TEXT = re.compile('[0-9,;]*')


def parse(text: str) -> Choice:
  """'3,17;2;;40' → ((3, 17), (2,), (), (40,)). '' is no layer at all."""
  if not text:
    return ()
  layers = text.split(';')
  return tuple(tuple(sorted(int(item) for item in layer.split(',') if item)) for layer in layers)


def written(choice: Sequence[Sequence[int]]) -> str:
  """The text of a choice, as `parse` reads it."""
  return ';'.join(','.join(map(str, sorted(layer))) for layer in choice)


def is_file(spec: str) -> bool:
  """Whether `finetune.experts` names a file. A file's name of only digits, commas and semicolons
  must be written ./NAME.
  """
  return not _TEXT.fullmatch(spec)


def faults(c, choice: Choice) -> Iterator[str]:
  """Yields a line for each fault of a choice, given the model of a `moe.config.Config` (`c`)."""
  experts = c.moe.num_experts
  layers = c.model.num_moe_layers
  if not c.has_routed_experts:
    yield f'{KEY} chooses experts, and the model has no routed ones: leave it out'
    return
  if len(choice) != layers:
    yield f'{KEY} has {len(choice)} layers, and the model {layers} MoE layers'
  for number, layer in enumerate(choice):
    if wrong := [expert for expert in layer if expert >= experts]:
      yield f'{KEY}: MoE layer {number} has expert {wrong[0]}: there are 0 to {experts - 1}'
    if twice := [a for a, b in itertools.pairwise(layer) if a == b]:
      yield f'{KEY}: MoE layer {number} has expert {twice[0]} twice'
  if not any(choice):
    yield f'{KEY} chooses no expert in any layer'
