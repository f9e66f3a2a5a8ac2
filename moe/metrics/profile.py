"""A profile of a few training steps: an xplane trace, and the time spent in each named scope.

`train.profile_steps=(a, b)` traces the steps from a to b. WORKDIR/profile then holds the trace, for
TensorBoard, XProf or Perfetto, and the printed table as scopes.json and scopes.svg: device time a
step by `jax.named_scope`, forward and backward apart. Scopes are those of the source: attention,
router, routed_ffn, cross_entropy, …
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from moe.metrics import pictures

_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*? ([a-z][a-z0-9-]*)\(')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# These instructions contain others, whose time would be counted twice.
_CONTROL_FLOW = ('while', 'conditional', 'call')
# Parts of a name that say how JAX or Flax got there, not where in the model it is.
_WRAPPED = re.compile(r'^(?:jvp|transpose|vmap|remat|checkpoint)\((.*)\)$')
_STRUCTURE = re.compile(
  r'^(while|body|cond|closed_call|checkpoint|rematted_computation|shard_map|branch_\d+_fun'
  r'|custom_jvp_call|custom_vjp_call\w*|p?jit\(.*\)|[A-Z]\w*|.*\..*|)$'
)
# The scan over layers itself, shown as 'layers': it takes a layer's weights out of their stacks,
# puts what backward needs into stacks that start as zeros, and carries the residual stream.
_SCAN = '.run_stack/'
_DEPTH = 3  # levels of scopes that a row of the table tells apart


class Row(NamedTuple):
  """Time of one scope in one direction, summed over the threads or cores that computed it."""

  scope: str
  direction: str  # 'forward' or 'backward'
  milliseconds: float  # a step
  share: float  # of all that was traced


class Profile:
  """Traces a run's steps from the first to the last of `steps`; none if `steps` is empty.

  A run that resumes within these steps traces those that are left.
  """

  def __init__(self, steps: Sequence[float], directory: Path, compiled: jax.stages.Compiled):
    self._first, self._last = map(int, steps) if steps else (0, -1)
    self._directory, self._compiled = directory, compiled
    self._since: int | None = None

  def before(self, step: int) -> None:
    """Call it before a step is dispatched."""
    if self._since is None and self._first <= step <= self._last:
      start(self._directory)
      self._since = step

  def after(self, step: int, results: object) -> str:
    """Call it with a step's results. Waits for the last step's and returns the table; else ''."""
    if self._since is None or step != self._last:
      return ''
    jax.block_until_ready(results)
    return self._end(step)

  def close(self) -> None:
    """Ends a trace that is still under way, as in a run that is stopped."""
    if self._since is not None:
      jax.profiler.stop_trace()
      self._since = None

  def _end(self, step):
    first, self._since = self._since, None
    rows = stop(self._directory, self._compiled.as_text(), step - first + 1)
    return f'steps {first} to {step} are traced in {self._directory}\n{text(rows)}'


def start(directory: Path) -> None:
  """Starts a trace of this process's devices into `directory`. Python's own calls are left out."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  jax.profiler.start_trace(str(directory), profiler_options=options)


def stop(directory: Path, program: str, steps: int) -> list[Row]:
  """Ends the trace; writes and returns the table.

  Args:
    directory: as given to `start`.
    program: HLO text of the compiled step, `compiled.as_text()`: it maps instructions to scopes.
    steps: how many were traced.
  """
  jax.profiler.stop_trace()
  newest = max(directory.rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
  rows = table(times(newest), scopes(program), steps)
  listed = [row._asdict() for row in rows]
  text = json.dumps({'steps': steps, 'trace': str(newest.relative_to(directory)), 'rows': listed})
  (directory / 'scopes.json').write_text(text + '\n', encoding='utf-8')
  pictures.write_time_by_scope(rows, directory / 'scopes.svg')
  return rows


def times(trace: Path) -> dict[str, float]:
  """{HLO instruction: nanoseconds}, summed over all threads and devices of a trace."""
  total: dict[str, float] = {}
  for name, duration in _events(trace):
    total[name] = total.get(name, 0.0) + duration
  return total


def scopes(program: str) -> dict[str, tuple[str, str]]:
  """{HLO instruction: (scope, direction)} of a compiled program's text, control flow left out."""
  found = {}
  for line in program.splitlines():
    instruction, named = _INSTRUCTION.match(line), _OP_NAME.search(line)
    if instruction and instruction[2] not in _CONTROL_FLOW:
      found[instruction[1]] = scope(named[1]) if named else ('', 'forward')
  return found


def scope(op_name: str) -> tuple[str, str]:
  """('moe/router', 'backward') of
  'jit(step)/transpose(jvp(Transformer))/while/body/moe/router/dot'.
  """
  direction = 'backward' if 'transpose(' in op_name or 'rematted' in op_name else 'forward'
  parts = []
  for part in op_name.split('/')[:-1]:
    while wrapped := _WRAPPED.match(part):
      part = wrapped[1]
    if not _STRUCTURE.match(part):
      parts.append(part)
  if not parts and _SCAN in op_name:
    parts = ['layers']
  return '/'.join(parts[:_DEPTH]), direction


def table(
  nanoseconds: Mapping[str, float], where: Mapping[str, tuple[str, str]], steps: int
) -> list[Row]:
  """The rows, the longest first. Leaves out instructions not in `where`. No scope is ''."""
  sums: dict[tuple[str, str], float] = {}
  for name, duration in nanoseconds.items():
    if name in where:
      sums[where[name]] = sums.get(where[name], 0.0) + duration
  total = sum(sums.values()) or 1.0
  rows = [Row(*key, value / 1e6 / steps, value / total) for key, value in sums.items()]
  return sorted(rows, key=lambda row: -row.milliseconds)


def text(rows: list[Row], most: int = 20) -> str:
  """The table as text, with its first `most` rows."""
  lines = [f'{"scope":<44}{"direction":<10}{"ms a step":>10}{"share":>8}']
  lines += [
    f'{row.scope or "(no scope)":<44}{row.direction:<10}{row.milliseconds:>10.2f}{row.share:>8.1%}'
    for row in rows[:most]
  ]
  return '\n'.join(lines)


def _events(trace: Path) -> Iterator[tuple[str, float]]:
  """Yields (instruction, nanoseconds) of each execution of an HLO instruction: on CPU a thunk,
  elsewhere an event in a device's plane.
  """
  for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
    of_device = plane.name.startswith('/device:')
    for line in plane.lines:
      if of_device and line.name not in ('XLA Ops', 'Stream', '') and 'Stream' not in line.name:
        continue
      for event in line.events:
        named = dict(event.stats).get('hlo_op')
        if named or of_device:
          yield str(named or event.name), event.duration_ns
