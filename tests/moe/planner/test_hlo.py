"""Reading HLO text, on hand-computed examples: loops, device groups, bytes sent and moved."""

import jax
import pytest

from moe.parallel import scopes
from moe.planner.collectives import Collective, collectives
from moe.planner.hlo import unread_loops
from moe.planner.traffic import memory_traffic

MESH = {'data': 2, 'fsdp': 2, 'expert': 2}

# A loop of 4 trips (counter from 1, by 2, below 9) around two loops: one of 3 trips,
# and one whose end depends on data.
LOOPS = """HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%inner_body (p.1: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %one.1 = s32[] constant(1)
  %next.1 = s32[] add(%i.1, %one.1)
  %x.1 = f32[8,4]{1,0} get-tuple-element(%p.1), index=1
  %reduced = f32[8,4]{1,0} all-reduce(%x.1), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%sum
  ROOT %t.1 = (s32[], f32[8,4]{1,0}) tuple(%next.1, %reduced)
}

%inner_condition (q.1: (s32[], f32[8,4])) -> pred[] {
  %q.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %j.1 = s32[] get-tuple-element(%q.1), index=0
  %limit.1 = s32[] constant(3)
  ROOT %less.1 = pred[] compare(%j.1, %limit.1), direction=LT
}

%again_body (p.3: (pred[], f32[8,4])) -> (pred[], f32[8,4]) {
  %p.3 = (pred[], f32[8,4]{1,0}) parameter(0)
  %x.3 = f32[8,4]{1,0} get-tuple-element(%p.3), index=1
  %more = pred[] get-tuple-element(%p.3), index=0
  %sent = f32[8,4]{1,0} all-to-all(%x.3), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
  ROOT %t.3 = (pred[], f32[8,4]{1,0}) tuple(%more, %sent)
}

%again_condition (q.3: (pred[], f32[8,4])) -> pred[] {
  %q.3 = (pred[], f32[8,4]{1,0}) parameter(0)
  ROOT %go = pred[] get-tuple-element(%q.3), index=0
}

%outer_body (p.2: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p.2 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %two = s32[] constant(2)
  %next.2 = s32[] add(%i.2, %two)
  %x.2 = f32[8,4]{1,0} get-tuple-element(%p.2), index=1
  %zero = s32[] constant(0)
  %start.1 = (s32[], f32[8,4]{1,0}) tuple(%zero, %x.2)
  %loop.1 = (s32[], f32[8,4]{1,0}) while(%start.1), condition=%inner_condition, body=%inner_body
  %y.2 = f32[8,4]{1,0} get-tuple-element(%loop.1), index=1
  %yes = pred[] constant(true)
  %start.3 = (pred[], f32[8,4]{1,0}) tuple(%yes, %y.2)
  %loop.3 = (pred[], f32[8,4]{1,0}) while(%start.3), condition=%again_condition, body=%again_body,
    metadata={op_name="jit(step)/further_rounds/while"}
  %z.2 = f32[8,4]{1,0} get-tuple-element(%loop.3), index=1
  ROOT %t.2 = (s32[], f32[8,4]{1,0}) tuple(%next.2, %z.2)
}

%outer_condition (q.2: (s32[], f32[8,4])) -> pred[] {
  %q.2 = (s32[], f32[8,4]{1,0}) parameter(0)
  %j.2 = s32[] get-tuple-element(%q.2), index=0
  %limit.2 = s32[] constant(9)
  ROOT %less.2 = pred[] compare(%j.2, %limit.2), direction=LT
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %one = s32[] constant(1)
  %start.2 = (s32[], f32[8,4]{1,0}) tuple(%one, %x)
  %loop.2 = (s32[], f32[8,4]{1,0}) while(%start.2), condition=%outer_condition, body=%outer_body
  ROOT %y = f32[8,4]{1,0} get-tuple-element(%loop.2), index=1
}
"""  # noqa: E501


def entry(*lines: str) -> str:
  """Returns a program of one computation."""
  return '\n'.join(
    [
      'HloModule m',
      '',
      'ENTRY %main (x: f32[8,4]) -> f32[8,4] {',
      *(f'  {x}' for x in lines),
      '}',
      '',
    ]
  )


def one(line: str, mesh=MESH, **options) -> Collective:
  """Returns the one collective of a program that runs `line` on x, 128 bytes."""
  [found] = collectives(entry('%x = f32[8,4]{1,0} parameter(0)', line), mesh, **options)
  return found


def test_loops_multiply_and_further_rounds_run_no_time():
  [found] = collectives(LOOPS, MESH)
  assert unread_loops(LOOPS) == []
  assert (found.kind, found.axes, found.times, found.devices) == ('all-reduce', ('data',), 12, 2)
  # Reduce-scatter, then all-gather, of 8 · 4 · 4 bytes over two devices.
  assert found.sent == 2 * 128 / 2


def test_a_sum_of_which_a_fusion_keeps_only_a_slice_is_a_reduce_scatter():
  """TPU's compiler writes some reduce-scatters this way."""
  fused = """%all-reduce-scatter (input: f32[8,4]) -> f32[4,4] {
  %input = f32[8,4]{1,0} parameter(0)
  %sum.1 = f32[8,4]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%sum
  %place = s32[] constant(0)
  ROOT %own = f32[4,4]{1,0} dynamic-slice(%sum.1, %place, %place), dynamic_slice_sizes={4,4}
}

"""  # noqa: E501
  calls = '%own.1 = f32[4,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter'
  text = entry('%x = f32[8,4]{1,0} parameter(0)', calls).replace('ENTRY', fused + 'ENTRY')
  [found] = collectives(text, MESH)
  assert (found.kind, found.axes, found.sent) == ('reduce-scatter', ('data',), 128 / 2)
  # A fusion that uses the whole sum is an all-reduce.
  whole = text.replace('ROOT %own', '%own').replace('%sum.1 = ', 'ROOT %sum.1 = ')
  assert [c.kind for c in collectives(whole, MESH)] == ['all-reduce']


def test_a_loop_of_unknown_length_counts_once_and_is_named():
  text = LOOPS.replace('further_rounds', 'search')
  assert [(c.kind, c.times) for c in collectives(text, MESH)] == [
    ('all-reduce', 12),
    ('all-to-all', 4),
  ]
  assert unread_loops(text) == ['jit(step)/search/while']


def test_a_trip_count_that_the_compiler_states_is_taken():
  text = LOOPS.replace(
    'body=%outer_body', 'body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}'
  )
  assert [c.times for c in collectives(text, MESH)] == [15]


@pytest.mark.parametrize(
  ('groups', 'axes'),
  [
    ('{{0,1},{2,3},{4,5},{6,7}}', ('expert',)),
    ('{{0,2},{1,3},{4,6},{5,7}}', ('fsdp',)),
    ('{{0,1,2,3},{4,5,6,7}}', ('fsdp', 'expert')),
    ('{{0,1,2,3,4,5,6,7}}', ('data', 'fsdp', 'expert')),
    ('[4,2]<=[8]', ('expert',)),
    ('[4,2]<=[2,4]T(1,0)', ('data',)),
    ('[4,2]<=[2,2,2]T(0,2,1)', ('fsdp',)),
    ("mesh['a'=2,'b'=4] {'b'}", ('fsdp', 'expert')),
    ("mesh['a'=2,'b'=4] {'a'}", ('data',)),
    ("mesh['a'=2,'b'=4] {'b':(1)2}", ('fsdp',)),
    ("mesh['a'=2,'b'=4] {'b':(2)2}", ('expert',)),
  ],
)
def test_replica_groups_are_mesh_axes(groups, axes):
  found = one(
    f'ROOT %g = f32[16,4]{{1,0}} all-gather(%x), replica_groups={groups}, dimensions={{0}}'
  )
  assert found.axes == axes
  assert found.sent == 128 * (2 ** len(axes) - 1)


def test_bytes_sent_by_kind():
  over = 'replica_groups={{0,1,2,3},{4,5,6,7}}'
  assert one(f'ROOT %r = f32[2,4] reduce-scatter(%x), {over}').sent == 128 * 3 / 4
  assert one(f'ROOT %r = f32[8,4] all-to-all(%x), {over}').sent == 128 * 3 / 4
  assert (
    one(f'ROOT %r = f32[8,4] ragged-all-to-all(%x, %x), {over}', ragged_share=0.5).sent
    == 128 * 3 / 4 / 2
  )
  shift = one(
    'ROOT %r = f32[8,4] collective-permute(%x), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}'
  )
  assert (shift.axes, shift.sent) == (('expert',), 128)
  assert (
    collectives(entry('%x = f32[8,4] parameter(0)', f'ROOT %r = f32[8,4] negate(%x), {over}'), MESH)
    == []
  )


def test_an_asynchronous_collective_counts_once():
  start = (
    '%s = (f32[8,4], f32[16,4]) all-gather-start(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}'
  )
  done = 'ROOT %d = f32[16,4] all-gather-done(%s)'
  [found] = collectives(entry('%x = f32[8,4]{1,0} parameter(0)', start, done), MESH)
  assert (found.kind, found.sent) == ('all-gather', 128)


def test_steps_of_an_asynchronous_collective_are_no_others_wherever_they_lie():
  groups = 'replica_groups={{0,1},{2,3},{4,5},{6,7}}'
  gather = f'all-gather(%p), channel_id=7, {groups}, frontend_attributes={{chain_id="3"}}'
  body = f'  %p = f32[8,4]{{1,0}} parameter(0)\n  ROOT %g = f32[16,4] {gather}'
  step = f'%NAME (p: f32[8,4]) -> f32[16,4] {{\n{body}\n}}\n'
  call = '  %NAME.1 = f32[16,4]{1,0} fusion(%IN), kind=kCustom, calls=%NAME\n'
  text = step.replace('NAME', 'first') + '\n' + step.replace('NAME', 'then') + '\n' + LOOPS
  text = text.replace('  %two = ', call.replace('NAME', 'first').replace('IN', 'x.2') + '  %two = ')
  text = text.replace(
    '  %one.1 = ', call.replace('NAME', 'then').replace('IN', 'x.1') + '  %one.1 = '
  )
  found = [c for c in collectives(text, MESH) if c.kind == 'all-gather']
  # It counts in the outer loop, where it starts; its later step lies in the inner loop.
  assert [(c.times, c.sent) for c in found] == [(4, 128)]


def test_a_ragged_exchange_moves_its_rows_and_not_the_buffer_that_it_writes_into():
  line = (
    'ROOT %r = f32[64,4]{1,0} ragged-all-to-all(%x, %to, %n, %n, %n, %n), '
    'replica_groups={{0,1},{2,3},{4,5},{6,7}}'
  )
  to, n = '%to = f32[64,4]{1,0} parameter(1)', '%n = s32[2]{0} parameter(2)'
  assert memory_traffic(entry('%x = f32[8,4]{1,0} parameter(0)', to, n, line)) == (2 * 128, 0)


def test_memory_traffic_reads_operands_and_writes_results_outside_the_chip():
  lines = (
    '%x = f32[8,4]{1,0} parameter(0)',
    '%kept = f32[8,4]{1,0:T(8,128)S(1)} negate(%x)',  # read 128, the result stays on the chip
    '%i = s32[] constant(0)',
    '%part = f32[1,4]{1,0} dynamic-slice(%x, %i, %i)',  # 16 read and written
    'ROOT %y = f32[8,4]{1,0} add(%kept, %x)',  # read 128, written 128
  )
  assert memory_traffic(entry(*lines)) == (128 + 2 * 16 + 256, 0)


def test_a_fusion_reads_only_what_it_cuts_out_and_writes_only_what_it_updates():
  cut = """%cut (p: bf16[3,8]) -> f32[1,8] {
  %p = bf16[3,8]{1,0} parameter(0)
  %c = f32[3,8]{1,0} convert(%p)
  ROOT %s = f32[1,8]{1,0} slice(%c), slice={[1:2], [0:8]}
}
"""
  put = """%put (p.1: f32[9,8], i: s32[1], u: f32[1,8]) -> f32[9,8] {
  %p.1 = f32[9,8]{1,0} parameter(0)
  %i = s32[1]{0} parameter(1)
  %u = f32[1,8]{1,0} parameter(2)
  ROOT %t = f32[9,8]{1,0} scatter(%p.1, %i, %u), to_apply=%cut
}
"""
  lines = (
    '%w = bf16[3,8]{1,0} parameter(0)',
    '%x = f32[9,8]{1,0} parameter(1)',
    '%at = s32[1]{0} parameter(2)',
    '%y = f32[1,8]{1,0} fusion(%w), kind=kLoop, calls=%cut',  # reads 16 bytes, writes 32
    'ROOT %z = f32[9,8]{1,0} fusion(%x, %at, %y), kind=kInput, calls=%put',  # reads 4 + 32
  )
  assert memory_traffic(cut + '\n' + put + '\n' + entry(*lines)) == (16 + 32 + 4 + 32 + 32, 0)


def test_what_a_kernel_says_that_it_moves():
  lines = (
    '%x = f32[8,4]{1,0} parameter(0)',
    'ROOT %y = f32[2,4]{1,0} custom-call(%x), custom_call_target="k"',
  )
  seen = []
  tell = lambda instruction, shapes: seen.append(shapes) or (7 if shapes else None)
  assert memory_traffic(entry(*lines), tell) == (7, 0)
  assert seen == [[], ['f32[8,4]{1,0}']]


def test_memory_traffic_in_loops_is_told_from_what_runs_once():
  text = LOOPS.replace('  %one = ', '  %n = f32[8,4]{1,0} negate(%x)\n  %one = ')
  # The loops run 12 all-reduces that read and write 128 bytes, and 16 counter updates,
  # each of which reads the counter and a constant, and writes the counter.
  assert memory_traffic(text) == (256, 12 * 256 + 16 * 3 * 4)


def test_what_scopes_say_is_read_back_from_the_traced_program():
  def program(x):
    with scopes.runs(0.25, 0.75):
      x = jax.lax.cond(x > 0, lambda x: x + 1, lambda x: x - 1, x)
    with scopes.further_rounds():
      return jax.lax.while_loop(lambda x: x < 9, lambda x: x + 1, x)

  equations = jax.make_jaxpr(program)(1.0).jaxpr.eqns
  shares = [scopes.branch_shares(str(e.source_info.name_stack)) for e in equations]
  assert [0.25, 0.75] in shares
  text = jax.jit(program).lower(1.0).compile().as_text()
  assert scopes.is_further_rounds(text) and not scopes.is_further_rounds('other/while')
