"""Bytes that a compiled program reads from and writes to a device's main memory in a step."""

import re
from typing import NamedTuple

from moe.planner.hlo import parse, runs, shape_bytes

_MOVE_NOTHING = (
  *(
    'parameter',
    'get-tuple-element',
    'bitcast',
    'tuple',
    'constant',
    'iota',
    'after-all',
    'while',
    'conditional',
  ),
  *('call', 'partition-id', 'opt-barrier', 'add-dependency', 'optimization-barrier'),
)


class Traffic(NamedTuple):
  """Bytes a step."""

  once: float  # outside of all loops: the optimizer's
  in_loops: float  # of microbatches and layers


def memory_traffic(text: str) -> Traffic:
  """Bytes that instructions read from and write to a device's main memory in a step.

  Every instruction reads its operands and writes its result once. Of an operand that a fusion only
  slices counts the slice; of an array updated in place, the update. What the compiler keeps on the
  chip (memory space S(n)) is free.
  """
  computations, entry = parse(text)
  once = in_loops = 0.0
  for computation, times, fused in runs(computations, entry):
    if not times or fused:
      continue
    moved = times * sum(
      _moved(i, computation, computations) for i in computation.instructions.values()
    )
    if computation.name == entry:
      once += moved
    else:
      in_loops += moved
  return Traffic(once, in_loops)


def _moved(instruction, computation, computations):
  """Bytes that one run of an instruction takes from and to main memory."""
  op = instruction.op
  if (
    op in _MOVE_NOTHING
    or op.endswith('-done')
    or 'custom_call_target="AllocateBuffer"' in instruction.line
  ):
    return 0
  if match := re.search(r'"bytes_accessed":"(\d+)"', instruction.line):  # a kernel's own estimate
    return int(match[1])
  sizes = [
    shape_bytes(computation.instructions[o].shape, on_chip=False)
    if o in computation.instructions
    else 0
    for o in instruction.operands
  ]
  result = shape_bytes(instruction.shape, on_chip=False)
  # It writes into its second operand, and not all of it.
  if op.removesuffix('-start') == 'ragged-all-to-all':
    return 2 * sizes[0]
  if op.endswith('-start'):
    return 2 * sum(sizes)
  if op in ('dynamic-slice', 'gather', 'slice'):
    return 2 * result
  if op in ('dynamic-update-slice', 'scatter'):
    return 2 * sum(sizes[1:2] if op == 'dynamic-update-slice' else sizes[1:])
  called = instruction.called('calls') if op == 'fusion' else None
  if called:
    return _fusion_moved(computations[called], sizes, result)
  return sum(sizes) + result


def _fusion_moved(inside, sizes, result):
  parameters = sorted(
    (int(re.search(r'parameter\((\d+)\)', i.line)[1]), i.name)
    for i in inside.instructions.values()
    if i.op == 'parameter'
  )
  for number, name in parameters:
    users = [i for i in inside.instructions.values() if name in i.operands]
    sliced = [i for i in users if i.op in ('dynamic-slice', 'gather') and i.operands[0] == name]
    updated = [i for i in users if i.op == 'dynamic-update-slice' and i.operands[0] == name]
    if users and number < len(sizes) and len(sliced) + len(updated) == len(users):
      sizes[number] = min(sizes[number], sum(shape_bytes(i.shape) for i in sliced))
      for update in updated:  # in place: the result is the array itself
        whole, part = (
          shape_bytes(inside.instructions[o].shape) for o in (name, update.operands[1])
        )
        result -= max(0, min(result, whole) - part)
  return sum(sizes) + result
