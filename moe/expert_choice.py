"""The choice of experts that are tuned, as text: '3,17;2;;40,41', the experts of each MoE layer,
layers separated by ';'. A config has it so, and a run keeps that text in its config.json. No jax
import.
"""

import itertools
import re
from collections.abc import Iterator, Sequence

KEY = 'finetune.experts'
# By layer, ascending.
Choice = tuple[tuple[int, ...], ...]
_TEXT = re.compile('[0-9,;]*')


def parse(text: str) -> Choice:
  """'3,17;2;;40' → ((3, 17), (2,), (), (40,)). '' is no layer at all."""
  if not text:
    return ()
  layers = text.split(';')
  return tuple(tuple(sorted(int(item) for item in layer.split(',') if item)) for layer in layers)


def written(choice: Sequence[Sequence[int]]) -> str:
  """What `parse` reads."""
  return ';'.join(','.join(map(str, sorted(layer))) for layer in choice)


def is_file(spec: str) -> bool:
  """Whether `finetune.experts` names a file; a name of digits, commas and semicolons is written
  ./NAME.
  """
  return not _TEXT.fullmatch(spec)


def faults(c, choice: Choice) -> Iterator[str]:
  """What is wrong with a choice for the model of a `moe.config.Config` (`c`), a line each."""
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
