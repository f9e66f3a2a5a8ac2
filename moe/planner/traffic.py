"""Bytes that a compiled program reads from and writes to a device's main memory in a step."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from moe.planner.hlo import Instruction, item_bytes, num_elements, parse, runs, shape_bytes

# Operations that read only a part of their first operand.
_CUTS = ('slice', 'dynamic-slice', 'gather')
# Operations that write into their first operand, in place.
_UPDATES = ('dynamic-update-slice', 'scatter')
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
  """Bytes per step."""

  once: float  # outside all loops: mainly the optimizer
  in_loops: float  # in the loops over microbatches and layers


def memory_traffic(
  text: str,
  of_kernel: Callable[[Instruction, Sequence[str]], float | None] = lambda *kernel: None,
) -> Traffic:
  """Bytes that instructions read from and write to a device's main memory in a step.

  Every instruction reads its operands and writes its result once. If a fusion only slices an
  operand, only the slice counts; if an array is updated in place, only the update. Arrays that the
  compiler keeps on the chip (memory space S(n)) are free.

  of_kernel: takes an instruction and its operands' shapes. Returns the bytes that it moves if it is
  a kernel without an estimate of its own, else None.
  """
  computations, entry = parse(text)
  once = in_loops = 0.0
  for computation, times, fused in runs(computations, entry):
    if not times or fused:
      continue
    moved = 0.0
    for instruction in computation.instructions.values():
      shapes = _operand_shapes(instruction, computation)
      known = of_kernel(instruction, shapes)
      moved += _moved(instruction, shapes, computations) if known is None else known
    moved *= times
    if computation.name == entry:
      once += moved
    else:
      in_loops += moved
  return Traffic(once, in_loops)


def _moved(instruction, operand_shapes, computations):
  """Bytes that one run of an instruction moves from and to main memory."""
  op = instruction.op
  if (
    op in _MOVE_NOTHING
    or op.endswith('-done')
    or 'custom_call_target="AllocateBuffer"' in instruction.line
  ):
    return 0
  if match := re.search(r'"bytes_accessed":"(\d+)"', instruction.line):  # a kernel's own estimate
    return int(match[1])
  sizes = [shape_bytes(shape, on_chip=False) for shape in operand_shapes]
  result = shape_bytes(instruction.shape, on_chip=False)
  # It writes into its second operand, but only a part of it.
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


def _operand_shapes(instruction, computation):
  """The shapes of the operands; '' for an operand that is no instruction of the computation."""
  instructions = computation.instructions
  return [instructions[o].shape if o in instructions else '' for o in instruction.operands]


def _update_of(instruction):
  """The operand with the new values: the second, or a scatter's third, after its indices."""
  return instruction.operands[1 + (instruction.op == 'scatter')]


def _users(inside, name):
  """Yields (instruction, its operand) for every use of `name`. It looks through conversions, since
  a fusion converts only the elements that it uses.
  """
  for instruction in inside.instructions.values():
    if name not in instruction.operands:
      continue
    if instruction.op == 'convert' and not instruction.is_root:
      yield from _users(inside, instruction.name)
    else:
      yield instruction, name


def _fusion_moved(inside, sizes, result):
  parameters = sorted(
    (int(re.search(r'parameter\((\d+)\)', i.line)[1]), i.name)
    for i in inside.instructions.values()
    if i.op == 'parameter'
  )
  for number, name in parameters:
    shape = inside.instructions[name].shape
    users = list(_users(inside, name))
    sliced = [i for i, operand in users if i.op in _CUTS and i.operands[0] == operand]
    updated = [i for i, _ in users if i.op in _UPDATES and i.operands[0] == name]
    if users and number < len(sizes) and len(sliced) + len(updated) == len(users):
      # Counts the sliced elements in the array's own type, before any conversion.
      read = sum(num_elements(i.shape) for i in sliced) * item_bytes(shape)
      sizes[number] = min(sizes[number], read)
      for update in updated:  # in place: the result is the array itself
        whole, part = (
          shape_bytes(inside.instructions[o].shape) for o in (name, _update_of(update))
        )
        result -= max(0, min(result, whole) - part)
  return sum(sizes) + result
