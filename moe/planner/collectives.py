"""The collectives of a compiled program: their kinds, mesh axes and runs per step, and the bytes
that a device sends.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from moe.planner.hlo import parse, runs, shape_bytes

_KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction: what it does in a step, per device."""

  kind: str
  axes: tuple[str, ...]  # mesh axes that it runs over
  times: float  # runs per step
  sent: float  # bytes that a device sends per run, by the ring algorithm of its kind
  devices: int  # per group
  where: str  # op_name


def collectives(
  text: str, mesh_shape: dict[str, int], ragged_share: float = 1.0
) -> list[Collective]:
  """Every collective of a program that was compiled for a mesh, with devices numbered as in
  `mesh.devices.flat`.

  ragged_share: the share of a ragged exchange's buffer that is sent when routing is balanced.
  """
  computations, entry = parse(text)
  found, chains = [], {}
  for computation, times, fused in runs(computations, entry):
    if not times:
      continue
    for instruction in computation.instructions.values():
      kind = instruction.op.removesuffix('-start')
      if kind not in _KINDS:
        continue
      if fused and kind == 'all-reduce' and _keeps_own_part(computation, instruction):
        kind = 'reduce-scatter'  # the TPU compiler writes it this way
      one = _collective(instruction, kind, computation, times, mesh_shape, ragged_share)
      if not fused:
        found.append(one)
        continue
      # An asynchronous collective is repeated in the fusions of its start, steps and end. Its steps
      # may be in a loop, so the fusion that runs least often counts.
      chain = tuple(re.findall(r'channel_id=\d+|chain_id="\d+"', instruction.line)) or (
        instruction.name,
      )
      if chain not in chains or times < chains[chain].times:
        chains[chain] = one
  return [c for c in (*found, *chains.values()) if c.devices > 1]


def groups(line: str) -> list[tuple[int, ...]]:
  """A collective's groups of devices; [] if it names none, which means one group of all devices."""
  if match := re.search(r'source_target_pairs=\{(\{.*?\})\}', line):
    return [tuple(map(int, pair.split(','))) for pair in re.findall(r'\{([\d,]+)\}', match[1])]
  if match := re.search(r'replica_groups=\{(\{.*?\})\}', line):
    return [tuple(map(int, group.split(','))) for group in re.findall(r'\{([\d,]+)\}', match[1])]
  if match := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line):
    return [tuple(map(int, group)) for group in _iota(match[1], match[2], match[3])]
  if match := re.search(r'replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}', line):
    return _mesh_groups(match[1], match[2], match[3])
  return []


def axes_of(groups_: Sequence[Sequence[int]], mesh_shape: dict[str, int]) -> tuple[str, ...]:
  """The mesh axes along which the devices of a group differ."""
  sizes = tuple(mesh_shape.values())
  differ = set()
  for group in groups_:
    coordinates = np.stack(np.unravel_index(np.asarray(group), sizes))
    differ |= {axis for axis, row in zip(mesh_shape, coordinates) if len(set(row.tolist())) > 1}
  return tuple(axis for axis in mesh_shape if axis in differ)


def _keeps_own_part(computation, instruction):
  """Whether a fusion's result is only the device's own share of the instruction's result."""
  root, members = computation.root, groups(instruction.line)
  share = members and shape_bytes(instruction.shape) == shape_bytes(root.shape) * len(members[0])
  return (
    share and root.op == 'dynamic-slice' and computation.source(root.operands[0]) == instruction
  )


def _collective(instruction, kind, computation, times, mesh_shape, ragged_share):
  members = groups(instruction.line) or [tuple(range(math.prod(mesh_shape.values())))]
  axes = axes_of(members, mesh_shape)
  n = math.prod(mesh_shape[a] for a in axes) if kind == 'collective-permute' else len(members[0])
  operands = [
    computation.instructions[o].shape for o in instruction.operands if o in computation.instructions
  ]
  if kind == 'ragged-all-to-all':
    operands = operands[:1]  # the others say where to put the rows, and how many
  size = sum(shape_bytes(shape) for shape in operands)
  sent = {
    'all-gather': size * (n - 1),
    'all-reduce': 2 * size * (n - 1) / n,
    'reduce-scatter': size * (n - 1) / n,
    'all-to-all': size * (n - 1) / n,
    'ragged-all-to-all': size * (n - 1) / n * ragged_share,
    'collective-permute': size,
  }[kind]
  return Collective(kind, axes, times, sent, n, instruction.where)


def _iota(shape, reshape, transpose):
  numbers = lambda x: tuple(int(n) for n in x.split(','))
  ids = np.arange(math.prod(numbers(reshape))).reshape(numbers(reshape))
  if transpose:
    ids = ids.transpose(numbers(transpose))
  return ids.reshape(numbers(shape))


def _mesh_groups(axes, order, over):
  """The groups along some axes of a mesh that the instruction defines itself:
  mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}.
  """
  sizes = {name: int(size) for name, size in re.findall(r"'?(\w+)'?=(\d+)", axes)}
  ids = np.arange(math.prod(sizes.values()))
  if match := re.search(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', order):
    ids = _iota(str(len(ids)), match[1], match[2])
  ids = ids.reshape(tuple(sizes.values()))
  # A group may use a part of an axis: 'a':(2)4 is the factor 4 after a first factor 2.
  for name, before, size in re.findall(r"'(\w+)':\((\d+)\)(\d+)", over):
    place, parts = (
      list(sizes).index(name),
      (int(before), int(size), sizes[name] // int(before) // int(size)),
    )
    ids = ids.reshape(ids.shape[:place] + parts + ids.shape[place + 1 :])
    items = list(sizes.items())
    items[place : place + 1] = [
      (f'{name}_before', parts[0]),
      (name, parts[1]),
      (f'{name}_after', parts[2]),
    ]
    sizes = dict(items)
  wanted = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", over)]
  rest = [i for i in range(ids.ndim) if i not in wanted]
  count = math.prod(ids.shape[i] for i in wanted)
  return [tuple(map(int, group)) for group in ids.transpose(rest + wanted).reshape(-1, count)]
