"""The table of time by named scope, for a small program and for names as XLA writes them."""

import json

import jax
import jax.numpy as jnp
import pytest

from moe.metrics import profile
from tests.small import compiled_anew


def step(x, w):
  def block(x, _):
    with jax.named_scope('attention'):
      x = jnp.tanh(x @ w)
    with jax.named_scope('experts'):
      return x @ w @ w @ w, None

  with jax.named_scope('model'):
    return jax.lax.scan(block, x, None, length=2)[0].sum()


def test_a_trace_gives_each_scope_its_time(tmp_path):
  x, w = jnp.ones((256, 256)), jnp.full((256, 256), 1e-3)
  with compiled_anew():
    compiled = jax.jit(jax.grad(step, argnums=1)).lower(x, w).compile()
  profile.start(tmp_path)
  for _ in range(3):
    jax.block_until_ready(compiled(x, w))
  rows = profile.stop(tmp_path, compiled.as_text(), 3)
  assert sum(row.share for row in rows) == pytest.approx(1)
  found = {(row.scope.rpartition('/')[2], row.direction) for row in rows}
  assert {('attention', 'forward'), ('experts', 'forward')} <= found
  assert {('attention', 'backward'), ('experts', 'backward')} <= found
  experts = sum(row.milliseconds for row in rows if row.scope.endswith('experts'))
  assert experts > sum(row.milliseconds for row in rows if row.scope.endswith('attention'))
  written = json.loads((tmp_path / 'scopes.json').read_text())
  assert written['steps'] == 3 and (tmp_path / written['trace']).is_file()
  assert 'experts' in (tmp_path / 'scopes.svg').read_text()
  assert [profile.Row(**row) for row in written['rows']] == rows


@pytest.mark.parametrize(
  'name, expected',
  [
    (
      'jit(step)/jvp(Transformer)/moe_blocks/while/body/moe/router/dot_general',
      'moe_blocks/moe/router',
    ),
    ('jit(step)/transpose(jvp(Transformer))/embed/scatter-add', 'embed'),
    ('jit(step)/jvp(Transformer)/checkpoint/rematted_computation/attention/tanh', 'attention'),
    ('jit(step)/optimizer/mul', 'optimizer'),
    ('jit(step)/jvp(Transformer)/attention/attention._product/dot', 'attention'),
    ('jit(step)/jvp(Transformer)/Transformer.run_stack/while/body/dynamic_slice', 'layers'),
    ('reduce_sum', ''),
  ],
)  # fmt: skip
def test_a_scope_is_what_the_source_names(name, expected):
  found, direction = profile.scope(name)
  assert found == expected
  assert direction == ('backward' if 'transpose' in name or 'rematted' in name else 'forward')


def test_control_flow_is_not_counted_beside_what_it_contains():
  program = (
    '%while.1 = (f32[]) while(%t), body=%b, metadata={op_name="jit(f)/m/a/while"}\n'
    '  ROOT %dot.2 = f32[4]{0} dot(%x, %y), metadata={op_name="jit(f)/m/a/dot_general"}\n'
    '  %copy.3 = f32[4]{0} copy(%dot.2)\n'
  )
  where = profile.scopes(program)
  assert where == {'dot.2': ('m/a', 'forward'), 'copy.3': ('', 'forward')}
  rows = profile.table({'while.1': 9e6, 'dot.2': 3e6, 'copy.3': 1e6, 'other': 5e6}, where, steps=2)
  assert rows == [('m/a', 'forward', 1.5, 0.75), ('', 'forward', 0.5, 0.25)]
