"""What launch.aot records, with a fake in place of the compiler."""

import types

from moe.planner.kernels import programs, records


def test_one_that_does_not_compile_hides_no_other():
  def compile_program(program, target):
    if program.op == 'router':
      raise RuntimeError('no\n  room')
    return {'kernels': [], 'compile_seconds': 1.0}

  costs = {'flops_ratio': 1.0, 'bytes_ratio': 1.5, 'shape': 'proxy', 'dtype': 'float32'}
  module = types.SimpleNamespace(
    compile_program=compile_program, layer_costs=lambda shape, dtype: costs
  )
  (shape,) = (each for each in programs.ODD if each.name == 'proxy')
  of = lambda ops, costs: list(
    records.records(module, ['a', 'b'], [shape], ['float32'], ops, costs)
  )
  made = of(['router', 'combine'], True)
  assert {(each['target'], each['op'], 'error' in each) for each in made[:-1]} == {
    *(('a', 'router', True), ('a', 'combine', False)),
    *(('b', 'router', True), ('b', 'combine', False)),
  }
  assert made[-1] == {'target': 'all', 'op': 'routed_ffn'} | costs
  failed = next(each for each in made if 'error' in each)
  assert failed['error'] == 'RuntimeError: no room' and 'FAILED' in records.line(failed)
  assert len(of([], False)) > len(of(['router'], False)) > 0
