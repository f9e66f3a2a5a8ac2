"""Imports point one way, and programs that only read configs start without jax.
Imports are read from the sources with ast.
"""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first. A module imports from its own row or rows above it; never from a row below.
ORDER = [
  [
    'moe.errors',
    'moe.keys',
    'moe.expert_choice',
    'moe.contradictions',
    'moe.config',
    'moe.config_page',
    'moe.intervention',
    'moe.finetune.choice',
    'moe.chips',
    'moe.files',
    'moe.host_memory',
    'moe.compiled',
    'moe.cli',
  ],
  [
    'moe.parallel.mesh',
    'moe.parallel.processes',
    'moe.ops',
  ],
  ['moe.parallel', 'moe.metrics.telemetry', 'moe.metrics.routing'],
  ['moe.routers'],
  ['moe.layers', 'moe.losses'],
  [
    'moe.optimizer',
    'moe.model',
    'moe.finetune',
    'moe.parameters',
    'moe.accounting',
    'moe.quantize',
  ],
  ['moe.data', 'moe.metrics', 'moe.accounting_tables'],
  ['moe.objective', 'moe.pipeline_parallel', 'moe.train_step'],
  ['moe.storage'],
  ['moe.evaluate', 'moe.generation', 'moe.generate', 'moe.chat', 'moe.analysis'],
  ['moe.inspection'],
  ['moe.run'],
  ['moe.checkpoint', 'moe.scored_text'],
  ['moe.tasks'],
  ['moe.warm_start'],
  ['moe.train', 'moe.convert', 'moe.planner', 'moe.finetune.select'],
  ['experiments'],  # the config files, directly in the folder
  ['experiments.studies'],
  ['experiments.corpora', 'experiments.benchmarks'],
  ['experiments.sweeps'],
  ['experiments.reports'],
  ['experiments.notebooks'],
  ['launch'],
]
ROWS = {room: row for row, rooms in enumerate(ORDER) for room in rooms}
OURS = ('moe', 'launch', 'experiments')
WITHOUT_JAX = [
  'moe',
  'moe.errors',
  'moe.config',
  'moe.intervention',
  'moe.accounting',
  'moe.cli',
  'launch.describe',
]
WITHOUT_JAX += [
  'launch.sweep',
  'launch.report',
  'experiments.studies.common',
  'experiments.studies.table1',
]
WITHOUT_JAX += [
  'experiments.corpora.debian_mix',
  'experiments.corpora.sources',
  'experiments.corpora.report',
]


def sources() -> dict[str, Path]:
  """Module name → file, for the library, the programs and the configs."""
  found = {}
  for package in OURS:
    for path in (ROOT / package).rglob('*.py'):
      parts = path.relative_to(ROOT).with_suffix('').parts
      found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
  return found


SOURCES = sources()


def imports(module: str) -> set[str]:
  """Every module that `module` imports, inside functions too. Ours are named down to the file."""
  found = set()
  for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{module} imports relatively: name the module in full'
      inside = {f'{node.module}.{alias.name}' for alias in node.names}
      modules = inside & SOURCES.keys()
      found |= modules | ({node.module} if modules != inside else set())
  return found


def room(module: str) -> str | None:
  """The entry of ORDER that `module` belongs to."""
  known = [name for name in ROWS if module == name or module.startswith(f'{name}.')]
  return max(known, key=len, default=None)


def root(module: str) -> str:
  return module.partition('.')[0]


@pytest.mark.parametrize('module', sorted(SOURCES))
def test_imports_point_one_way(module):
  if module == 'moe':
    return
  assert room(module), f'{module} has no place in ORDER'
  for imported in imports(module):
    if root(imported) in OURS and imported != 'moe':
      assert room(imported), f'{imported} has no place in ORDER'
      assert ROWS[room(imported)] <= ROWS[room(module)], f'{module} must not import {imported}'


def test_no_module_imports_itself_in_a_circle():
  graphlib.TopologicalSorter({name: imports(name) & SOURCES.keys() for name in SOURCES}).prepare()


@pytest.mark.parametrize('module', sorted(name for name in SOURCES if room(name) == 'moe.ops'))
def test_ops_are_arrays_in_arrays_out(module):
  for imported in imports(module):
    assert root(imported) not in ('flax', 'ml_collections'), f'{module} imports {imported}'
    assert root(imported) != 'moe' or room(imported) in ('moe.ops', 'moe.errors'), (
      f'{module} imports {imported}'
    )


@pytest.mark.parametrize(
  'path', sorted((ROOT / 'experiments').glob('*.py')), ids=lambda path: path.stem
)
def test_configs_are_light(path):
  module = 'experiments' if path.stem == '__init__' else f'experiments.{path.stem}'
  for imported in imports(module):
    allowed = (
      root(imported) in ('ml_collections', 'experiments')
      or root(imported) in sys.stdlib_module_names
    )
    assert allowed or imported in ('moe.errors', 'moe.config'), f'{module} imports {imported}'


@pytest.mark.parametrize('module', WITHOUT_JAX)
def test_starts_without_jax(module):
  run_python(f"import {module}, sys; assert 'jax' not in sys.modules")


def test_describe_all_starts_no_device():
  """Layers and routers are asked for their counts. That imports jax, but starts no device."""
  run_python(
    "import sys; sys.argv = ['describe', '--all']\n"
    'from launch import describe\nfrom moe import cli\n'
    'try:\n  cli.run(describe.main)\n'
    'except SystemExit as end:\n  assert not end.code\n'
    'from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()\n'
  )


def run_python(program: str) -> None:
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('path', sorted((ROOT / 'launch').glob('*.py')), ids=lambda path: path.stem)
def test_a_program_is_flags_and_one_call(path):
  assert len(path.read_text(encoding='utf-8').splitlines()) <= 70
