"""Compiled HLO text → computations, and how often each of them runs in a step.

A loop's number of trips follows from its condition (counter < constant), its start and its step.
The further rounds of an exchange (`moe/parallel/experts/rounds.py`) last until no tokens are left,
and count 0 times: balanced routing needs none. Any other loop whose trips cannot be read counts
once, and `unread_loops` names it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from moe.parallel.scopes import branch_shares, is_further_rounds

_ITEM_BITS = {
  'pred': 8,
  's4': 4,
  'u4': 4,
  's8': 8,
  'u8': 8,
  'bf16': 16,
  'f16': 16,
  's16': 16,
  'u16': 16,
}
_ITEM_BITS |= {
  's32': 32,
  'u32': 32,
  'f32': 32,
  's64': 64,
  'u64': 64,
  'f64': 64,
  'f8e4m3fn': 8,
  'f8e5m2': 8,
}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO text."""

  name: str
  shape: str  # of the result, layout included
  op: str
  operands: tuple[str, ...]
  line: str
  is_root: bool

  @property
  def where(self) -> str:
    """The traced program's operation that the instruction comes from; '' if it names none."""
    match = re.search(r'op_name="([^"]*)"', self.line)
    return match[1] if match else ''

  def called(self, key: str) -> str | None:
    match = re.search(rf'\b{key}=%([^\s,)]+)', self.line)
    return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
  name: str
  instructions: dict[str, Instruction]

  @property
  def root(self) -> Instruction:
    return next(i for i in self.instructions.values() if i.is_root)

  def source(self, name: str) -> Instruction | None:
    """The instruction that produces a value, behind copies, reshapes and conversions."""
    instruction = self.instructions.get(name)
    while (
      instruction
      and instruction.op in ('copy', 'bitcast', 'convert', 'reshape')
      and instruction.operands
    ):
      instruction = self.instructions.get(instruction.operands[0])
    return instruction


@functools.lru_cache(maxsize=1)  # collectives, traffic and loops all parse the same program
def parse(text: str) -> tuple[dict[str, Computation], str]:
  """Computations by name, and the name of the entry."""
  computations, entry, current = {}, '', None
  for line in _joined(text):
    header = re.match(r'(ENTRY )?%?([^\s(]+) \(.*\) -> .*\{$', line)
    if header:
      current = computations[header[2]] = Computation(header[2], {})
      entry = header[2] if header[1] else entry
    elif current is not None and (instruction := _instruction(line)):
      current.instructions[instruction.name] = instruction
  return computations, entry


def runs(
  computations: dict[str, Computation], entry: str
) -> Iterator[tuple[Computation, float, bool]]:
  """Yields (computation, runs per step, whether it is inside a fusion) for every call of it."""

  def walk(name, times, fused):
    computation = computations[name]
    yield computation, times, fused
    for instruction in computation.instructions.values():
      if instruction.op == 'while':
        read = trips(computations, computation, instruction)
        yield from walk(instruction.called('body'), times * (1 if read is None else read), fused)
      elif instruction.op == 'conditional':
        branches = re.search(r'branch_computations=\{([^}]*)\}', instruction.line)
        names = re.findall(r'%([^\s,}]+)', branches[1]) if branches else []
        names = names or [
          instruction.called('false_computation'),
          instruction.called('true_computation'),
        ]
        for branch, share in zip(names, branch_shares(instruction.line) or [1.0]):
          yield from walk(branch, times * share, fused)
      elif called := instruction.called('calls'):
        yield from walk(called, times, fused or instruction.op == 'fusion')
      elif instruction.op == 'call' and (called := instruction.called('to_apply')):
        yield from walk(called, times, fused)

  yield from walk(entry, 1.0, False)


def unread_loops(text: str) -> list[str]:
  """The loops whose trips cannot be read, by the operation that they come from."""
  computations, _ = parse(text)
  loops = [
    (c, i) for c in computations.values() for i in c.instructions.values() if i.op == 'while'
  ]
  return sorted({i.where or i.name for c, i in loops if trips(computations, c, i) is None})


def trips(
  computations: dict[str, Computation], outer: Computation, loop: Instruction
) -> int | None:
  """How often a while loop's body runs; None if that cannot be read."""
  if is_further_rounds(loop.where):
    return 0
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.line)
  if known:
    return int(known[1])
  condition, body = computations[loop.called('condition')], computations[loop.called('body')]
  test = condition.root
  compared = [condition.source(name) for name in test.operands]
  if test.op == 'fusion':  # counter and limit are its operands
    test = computations[test.called('calls')].root
  if test.op != 'compare':
    return None
  limits = [_constant(i) for i in compared if i and i.op == 'constant']
  counters = [_index(i) for i in compared if i and i.op == 'get-tuple-element']
  if len(limits) != 1 or len(counters) != 1 or limits[0] is None:
    return None
  start, step = _start(outer, loop, counters[0]), _step(computations, body, counters[0])
  direction = re.search(r'direction=(LT|LE)', test.line)
  if start is None or not step or step < 0 or not direction:
    return None
  return max(0, math.ceil((limits[0] + (direction[1] == 'LE') - start) / step))


def shape_bytes(shape: str, on_chip: bool = True) -> int:
  """Bytes of a shape in HLO text, or of a tuple of them. `on_chip`: whether arrays outside the main
  memory space count.
  """
  total = 0
  for kind, dims, layout in re.findall(r'(\w+)\[([\d,]*)\](\{[^}]*\})?', shape):
    if on_chip or not re.search(r'S\(\d+\)', layout):
      total += _ITEM_BITS.get(kind, 0) * math.prod(int(d) for d in dims.split(',') if d) // 8
  return total


def num_elements(shape: str) -> int:
  """The number of elements of an array's shape in HLO text."""
  return math.prod(int(d) for d in re.search(r'\[([\d,]*)\]', shape)[1].split(',') if d)


def item_bytes(shape: str) -> float:
  """Bytes of one element of an array's shape in HLO text."""
  return _ITEM_BITS.get(shape.partition('[')[0], 0) / 8


def _joined(text):
  """Yields the lines of `text`, with the lines of an instruction joined: a kernel's metadata may
  span several.
  """
  held = ''
  for line in text.splitlines():
    if held and not re.match(r'\s*(ROOT )?%?[\w.-]+ = |\}|(ENTRY )?%?[\w.-]+ \(|\s*$', line):
      held += ' ' + line
      continue
    if held:
      yield held
    held = line
  if held:
    yield held


def _instruction(line):
  match = re.match(r'\s*(ROOT )?%?([^\s=]+) = ((?:\(.*?\)|\S+)) ([a-z][a-z0-9-]*)\((.*)', line)
  if not match:
    return None
  root, name, shape, op, rest = match.groups()
  operands = tuple(re.findall(r'%([^\s,()]+)', _until_closed(rest)))
  return Instruction(name, shape, op, operands, line, bool(root))


def _until_closed(text):
  """The part of `text` before the parenthesis that closes one opened just before it."""
  depth = 1
  for end, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if not depth:
      return text[:end]
  return text


def _constant(instruction):
  match = re.search(r' constant\((-?\d+)\)', instruction.line)
  return int(match[1]) if match else None


def _index(instruction):
  return int(re.search(r'index=(\d+)', instruction.line)[1])


def _start(outer, loop, counter):
  """The counter's value before the loop; None if the tuple that the loop starts from holds no
  constant there.
  """
  state = outer.source(loop.operands[0])
  first = outer.source(state.operands[counter]) if state and state.op == 'tuple' else None
  return _constant(first) if first and first.op == 'constant' else None


def _step(computations, body, counter):
  """What the body adds to the counter; None if that is no constant."""
  result = body.root
  new = body.source(result.operands[counter]) if result.op == 'tuple' else None
  scope = body
  if new and new.op == 'fusion':
    scope = computations[new.called('calls')]
    new = scope.root
  if new is None or new.op != 'add':
    return None
  added = [scope.source(name) for name in new.operands]
  constants = [_constant(i) for i in added if i and i.op == 'constant']
  return constants[0] if len(constants) == 1 else None
