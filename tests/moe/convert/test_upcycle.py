"""Dense runs made MoE runs: at step 0 they compute what the dense run does, by an independent
forward pass in NumPy and float64; what does not fit is one line and leaves nothing behind.
"""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from moe.convert.division import divide
from moe.convert.from_hf import from_hf
from moe.convert.to_hf import to_hf
from moe.convert.upcycle import Options, upcycle
from moe.errors import UserError
from moe.run import load_run
from moe.storage import provenance
from moe.train import train
from tests import in_process
from tests.launch.runs import config as tiny
from tests.launch.runs import conftest as of_runs
from tests.launch.runs import programs
from tests.moe.convert import hf_checkpoint
from tests.moe.convert.hf_checkpoint import LLAMA, tensors, write
from tests.moe.convert.test_weights import logits, read
from tests.small import one_device, small_config

corpus = of_runs.corpus
pytestmark = pytest.mark.usefixtures('quick_compile')

# The dense model's sizes, for the MoE config: d_ff 80.
AS_LLAMA = {
  'model.vocab_size': 96,
  'model.num_layers': 3,
  'model.d_model': 32,
  'model.num_heads': 4,
  'model.num_kv_heads': 2,
  'model.norm_eps': 1e-5,
}
TOKENS_L = np.random.default_rng(1).integers(0, 96, 24)


def moe_config(shared, routed, active, width, **overrides):
  experts = dict(
    zip(('num_shared_experts', 'num_experts', 'experts_per_token'), (shared, routed, active))
  )
  experts |= {'d_expert': width}
  keys = {f'moe.{key}': value for key, value in experts.items()}
  return small_config(**AS_LLAMA | keys | overrides)


# shared, routed, active, width; experts of a group, groups a token, copies of a unit.
DIVISIONS = {
  'each unit once': ((1, 8, 4, 16), (4, 1, {1})),
  'some units twice': ((1, 12, 6, 16), (6, 1, {1, 2})),
  'six groups a token': ((3, 12, 12, 16), (2, 6, {1})),
  'whole copies, two a token': ((0, 4, 2, 80), (1, 2, {1})),
  'two groups of two': ((1, 8, 4, 32), (2, 2, {1, 2})),
  'an expert of no group': ((0, 9, 4, 24), (4, 1, {1, 2})),
  'one group, and an expert beside': ((0, 5, 4, 24), (4, 1, {1, 2})),
  'all of it shared': ((5, 4, 1, 16), (1, 1, {1, 2})),
  'larger groups, for there is an expert more': ((0, 9, 4, 40), (4, 1, {2})),
  'a unit in every expert': ((1, 7, 7, 80), (1, 7, {2})),
}  # fmt: skip
# Of these the logits, too.
CASES = (
  *('some units twice', 'two groups of two', 'an expert of no group'),
  *('one group, and an expert beside', 'all of it shared'),
)


@pytest.fixture(scope='module')
def weights():
  return tensors(LLAMA)


@pytest.fixture(scope='module')
def llama(weights, tmp_path_factory):
  """A converted dense run, without a tokenizer, float32."""
  folder = tmp_path_factory.mktemp('llama')
  from_hf(write(folder / 'hf', LLAMA, weights), folder / 'run')
  return folder / 'run'


@pytest.fixture(scope='module')
def trained(corpus, tmp_path_factory):
  """(a dense run of 20 steps, the config of a MoE of its sizes)."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  shape = {'model.num_dense_layers': 2, 'model.d_ff': 64}
  none = dict.fromkeys(('num_experts', 'num_shared_experts', 'experts_per_token', 'd_expert'), 0)
  short = {'train.num_steps': 20, 'train.writers': '', 'checkpoint.every_steps': 20}
  flags = (f'--config.data.sources={corpus}', '--config.data.holdout=0.15')
  overrides = shape | short | {f'moe.{key}': value for key, value in none.items()}
  with one_device():
    train(programs.config(flags, **overrides, **{'moe.expert_balance_weight': 0.0}), workdir)
  config = programs.config(
    flags,
    **short
    | {'moe.d_expert': 16, 'moe.experts_per_token': 3, 'moe.num_experts': 12}
    | {'data.dir': str(workdir / 'data'), 'train.num_steps': 2, 'optimizer.warmup_steps': 0},
  )
  return workdir, config


def exported(workdir, folder):
  """A run as the released layout has it: (config.json, tensors)."""
  to_hf(workdir, folder)
  return json.loads((folder / 'config.json').read_text()), read(folder)


@pytest.mark.parametrize('name', DIVISIONS)
def test_shared_experts_and_a_group_hold_every_unit(name):
  sizes, (group, groups, copies) = DIVISIONS[name]
  shared, *_, width = sizes
  found = divide(moe_config(*sizes), 80, np.random.default_rng(0))
  assert (found.group, found.groups, set(found.copies_X)) == (group, groups, copies)
  assert found.parts_GF.shape == (group, width)
  assert all(len(set(part)) == width for part in found.parts_GF)  # none twice in an expert
  assert list(found.shared_X) == list(range(shared * width))
  held = [*found.shared_X, *found.parts_GF.ravel()]
  assert [held.count(unit) for unit in range(80)] == list(found.copies_X)


@pytest.mark.parametrize('name', CASES)
def test_the_first_step_is_the_dense_model(name, weights, llama, tmp_path):
  upcycle(llama, moe_config(*DIVISIONS[name][0]), tmp_path / 'run')
  truth_LV = hf_checkpoint.logits(LLAMA, weights, TOKENS_L)
  found_LV = hf_checkpoint.logits(*exported(tmp_path / 'run', tmp_path / 'hf'), TOKENS_L)
  assert np.abs(truth_LV).max() > 2
  np.testing.assert_allclose(found_LV, truth_LV, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  'sizes, overrides',
  [
    ((1, 12, 6, 16), {'model.num_dense_layers': 1, 'model.d_ff': 80}),
    ((1, 8, 4, 24), {'moe.router': 'hash'}),
  ],
)
def test_so_it_is_by_the_model_itself(sizes, overrides, weights, llama, tmp_path):
  """The hash router's 4 consecutive experts are of one group or two."""
  upcycle(llama, moe_config(*sizes, **overrides), tmp_path / 'run')
  truth_LV = hf_checkpoint.logits(LLAMA, weights, TOKENS_L)
  found_LV = logits(load_run(tmp_path / 'run'), TOKENS_L)
  np.testing.assert_allclose(found_LV, truth_LV, rtol=0, atol=1e-5)


def test_a_layer_is_the_ffn_whichever_group_is_chosen(weights, llama, tmp_path):
  """Also of groups that no token of a text comes to: gates of 1/E, by hand."""
  config = moe_config(1, 12, 6, 16)
  upcycle(llama, config, tmp_path / 'run')
  moe = jax.tree.map(np.float64, load_run(tmp_path / 'run').params['moe_blocks']['moe'])
  u_LD = np.random.default_rng(2).normal(size=(5, 32))

  def ffn(w, *index):
    gate, up, down = (w[name][index] for name in ('gate', 'up', 'down'))
    hidden = u_LD @ gate
    return (hidden / (1 + np.exp(-hidden)) * (u_LD @ up)) @ down

  for layer in range(3):
    matrices = [
      weights[f'model.layers.{layer}.mlp.{x}_proj.weight'] for x in ('gate', 'up', 'down')
    ]
    truth_LD = ffn(
      dict(zip(('gate', 'up', 'down'), (m.T[None].astype(np.float64) for m in matrices))), 0
    )
    for first in (0, 6):
      routed = sum(ffn(moe['experts'], layer, expert) / 12 for expert in range(first, first + 6))
      np.testing.assert_allclose(ffn(moe['shared'], layer) + routed, truth_LD, rtol=0, atol=1e-5)


def test_all_but_the_ffns_is_the_dense_run_byte_for_byte(llama, tmp_path):
  config = moe_config(1, 12, 6, 16, **{'model.num_dense_layers': 1, 'model.d_ff': 80})
  made = upcycle(llama, config, tmp_path / 'run')
  dense, new = load_run(llama), load_run(tmp_path / 'run')
  assert new.config == config and new.step == 0
  assert made.parameters == sum(x.size for x in jax.tree.leaves(new.params))
  ours, blocks = dict(new.params), dense.params['dense_blocks']
  experts = dict(ours.pop('moe_blocks'))
  router_NDE = np.asarray(experts.pop('moe')['router']['experts'])
  first, rest = (jax.tree.map(lambda x, s=s: x[s], blocks) for s in (slice(1), slice(1, None)))
  rest.pop('mlp')
  jax.tree.map(np.testing.assert_array_equal, ours.pop('dense_blocks'), first)
  jax.tree.map(np.testing.assert_array_equal, experts, rest)
  others = {k: v for k, v in dense.params.items() if k != 'dense_blocks'}
  jax.tree.map(np.testing.assert_array_equal, ours, others)
  # A column a group.
  np.testing.assert_array_equal(router_NDE[..., 0:6], np.repeat(router_NDE[..., :1], 6, axis=-1))
  np.testing.assert_array_equal(router_NDE[..., 6:], np.repeat(router_NDE[..., 6:7], 6, axis=-1))
  assert 0 < np.abs(router_NDE).max() < 1e-5 and (router_NDE[..., 0] != router_NDE[..., 6]).all()


def test_the_seed_decides_what_is_drawn(llama, tmp_path):
  params = []
  for name, options in {'a': Options(), 'b': Options(), 'c': Options(seed=1)}.items():
    upcycle(llama, moe_config(1, 12, 6, 16), tmp_path / name, options)
    params.append(load_run(tmp_path / name).params['moe_blocks']['moe'])
  a, b, c = params
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert not np.array_equal(a['router']['experts'], c['router']['experts'])
  assert not np.array_equal(a['experts']['up'], c['experts']['up'])


def test_a_random_router_is_a_new_runs(llama, tmp_path):
  made = upcycle(llama, moe_config(1, 12, 6, 16), tmp_path / 'run', Options(router='random'))
  router_NDE = load_run(tmp_path / 'run').params['moe_blocks']['moe']['router']['experts']
  assert 0.004 < float(router_NDE.std()) < 0.008  # init_std is 0.006
  assert any('not even' in note for note in made.notes)


@pytest.mark.parametrize('dtype', [None, 'float32'])
def test_a_bfloat16_run_stays_so_or_is_widened_exactly(dtype, tmp_path):
  hf = LLAMA | {'torch_dtype': 'bfloat16'}
  narrow = tensors(hf, dtype=ml_dtypes.bfloat16)
  from_hf(write(tmp_path / 'hf', hf, narrow), tmp_path / 'dense')
  config = moe_config(1, 12, 6, 16)
  made = upcycle(tmp_path / 'dense', config, tmp_path / 'run', Options(dtype=dtype))
  assert {x.dtype.name for x in jax.tree.leaves(load_run(tmp_path / 'run').params)} == {
    dtype or 'bfloat16'
  }
  assert any('rounded to bfloat16' in note for note in made.notes) == (dtype is None)
  wide = {name: w.astype(np.float32) for name, w in narrow.items()}
  truth_LV = hf_checkpoint.logits(LLAMA, wide, TOKENS_L)
  found_LV = hf_checkpoint.logits(*exported(tmp_path / 'run', tmp_path / 'out'), TOKENS_L)
  np.testing.assert_allclose(found_LV, truth_LV, rtol=0, atol=1e-5 if dtype else 0.1)


def test_a_trained_run_is_gone_on_with_from_where_it_was(trained, tmp_path):
  workdir, config = trained
  told = in_process.check(
    *('convert', f'--upcycle={workdir}', f'--workdir={tmp_path}/start'),
    *(f'--config={tiny.__file__}', '--config.moe.experts_per_token=3'),
    '--config.moe.num_experts=12',
  )
  assert 'parameters of step 20' in told and 'each hidden unit of the dense FFN is 1 times' in told
  dense, start = load_run(workdir), load_run(tmp_path / 'start')
  tokens_L = dense.tokenizer.encode('the expert router')
  assert start.tokenizer.encode('the expert router') == tokens_L
  np.testing.assert_allclose(logits(start, tokens_L), logits(dense, tokens_L), rtol=0, atol=1e-5)
  (part,) = json.loads((tmp_path / 'start' / provenance.FILE).read_text())
  assert part['upcycled_from']['path'] == str(workdir) and part['upcycled_from']['step'] == 20
  warm = dataclasses.replace(config.train, init_from=str(tmp_path / 'start'))
  with one_device():
    train(dataclasses.replace(config, train=warm), tmp_path / 'run')
  before, after = (programs.lines(each)[-1]['loss'] for each in (workdir, tmp_path / 'run'))
  assert after < before + 0.5


OTHER_SIZES = {'model.num_kv_heads': 4, 'model.rope_base': 500.0, 'model.num_layers': 2}
BAD = {
  'wider experts': ((1, 4, 2, 81), {}, 'moe.d_expert=81 and the dense run has model.d_ff=80'),
  'too much shared': ((6, 4, 2, 16), {}, 'moe.num_shared_experts=6'),
  'too little a token': ((1, 8, 3, 16), {}, 'moe.experts_per_token=3'),
  'hash without whole groups': ((1, 9, 4, 16), {'moe.router': 'hash'}, 'multiple of'),
  'other sizes': (
    (1, 8, 4, 16),
    OTHER_SIZES,
    'model.num_layers=2 (there 3), model.num_kv_heads=4 (there 2), model.rope_base=500.0',
  ),
  'another dense layer': (
    (1, 8, 4, 16),
    {'model.num_dense_layers': 1, 'model.d_ff': 81},
    'model.d_ff=81 (there 80)',
  ),
  'no experts': ((1, 0, 0, 16), {'moe.expert_balance_weight': 0.0}, 'no routed experts'),
  'dense': ((1, 8, 4, 16), {'model.num_dense_layers': 3, 'model.d_ff': 80}, 'no routed experts'),
  'another source': ((1, 8, 4, 16), {'train.init_from': 'DIR'}, 'train.init_from=DIR'),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD)
def test_a_config_that_does_not_fit_is_one_line_and_leaves_nothing(name, llama, tmp_path):
  sizes, overrides, words = BAD[name]
  with pytest.raises(UserError) as error:
    upcycle(llama, moe_config(*sizes, **overrides), tmp_path / 'run')
  assert words in str(error.value) and '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_damaged_run_or_one_with_experts_leaves_nothing(llama, tmp_path):
  config = moe_config(1, 8, 4, 16)
  upcycle(llama, config, tmp_path / 'moe')
  with pytest.raises(UserError, match='has experts already'):
    upcycle(tmp_path / 'moe', config, tmp_path / 'run')
  shutil.copytree(llama, tmp_path / 'dense')
  params = tmp_path / 'dense/checkpoints/0/params'
  data = max(params.rglob('d/*'), key=lambda path: path.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  with pytest.raises(UserError, match='is damaged: the bytes of'):
    upcycle(tmp_path / 'dense', config, tmp_path / 'run')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['dense', 'moe']


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--upcycle=/nowhere'], '--config=FILE.py'),
    (['--upcycle=/nowhere', '--from=HF'], 'give one of'),
    (['--upcycle=/nowhere', '--out=DIR'], '--out goes with --to'),
    (['--from=HF', '--seed=1'], '--seed goes with --upcycle'),
    (['--to=hf', '--out=DIR', f'--config={tiny.__file__}'], '--config goes with --upcycle'),
    (['--upcycle=/nowhere', f'--config={tiny.__file__}'], 'no checkpoint in /nowhere'),
    (['--upcycle=gs://a/b', f'--config={tiny.__file__}'], '--upcycle=gs://a/b'),
    (['--upcycle=x', '--router=zero'], '--router'),
  ],
)
def test_flags_that_do_not_go_together_are_one_line(tmp_path, flags, words):
  assert words in in_process.error_line('convert', f'--workdir={tmp_path}/run', *flags)
  assert not list(tmp_path.iterdir())
