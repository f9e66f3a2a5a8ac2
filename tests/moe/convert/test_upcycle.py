"""Dense runs made MoE runs. At step 0 they compute what the dense run does, by an independent
forward pass in NumPy and float64. What does not fit gives one line and leaves nothing behind.
"""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from experiments.notebooks import released
from experiments.notebooks.released import tensors, write
from moe.convert.division import divide
from moe.convert.from_hf import from_hf
from moe.convert.to_hf import to_hf
from moe.convert.upcycle import Options, upcycle
from moe.errors import UserError
from moe.run import load_run
from moe.storage import provenance
from moe.train import train
from moe.warm_start.find import find
from tests import in_process
from tests.launch.runs import config as tiny
from tests.launch.runs import conftest as of_runs
from tests.launch.runs import programs
from tests.moe.convert.hf_checkpoint import LLAMA
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


# (shared, routed, active, width), (experts per group, groups per token, copies of a unit).
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
# For these the logits are compared too.
CASES = ('two groups of two', 'an expert of no group', 'one group, and an expert beside')
ONE_DENSE = {'model.num_dense_layers': 1, 'model.d_ff': 80}


@pytest.fixture(scope='module')
def weights():
  return tensors(LLAMA)


@pytest.fixture(scope='module')
def llama(weights, tmp_path_factory):
  """A converted dense run in float32, without a tokenizer."""
  folder = tmp_path_factory.mktemp('llama')
  from_hf(write(folder / 'hf', LLAMA, weights), folder / 'run')
  return folder / 'run'


@pytest.fixture(scope='module')
def upcycled(llama, tmp_path_factory):
  """`llama` as a MoE of 1 shared and 12 routed experts, 6 active, the first layer dense. Tests only
  read it.
  """
  workdir = tmp_path_factory.mktemp('upcycled') / 'run'
  made = upcycle(llama, moe_config(1, 12, 6, 16, **ONE_DENSE), workdir)
  assert made.notes == (
    'each hidden unit of the dense FFN is 1 or 2 times in the shared experts and a group of 6; '
    'a token goes to 1 of 2 groups',
  )
  run = load_run(workdir)
  assert made.parameters == sum(x.size for x in jax.tree.leaves(run.params))
  return run


@pytest.fixture(scope='module')
def trained(corpus, tmp_path_factory):
  """A dense run of a few training steps, d_ff 64."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  none = dict.fromkeys(('num_experts', 'num_shared_experts', 'experts_per_token', 'd_expert'), 0)
  short = {'train.num_steps': 8, 'train.writers': '', 'checkpoint.keep_best': 0}
  dense = {'model.num_dense_layers': 2, 'model.d_ff': 64, 'moe.expert_balance_weight': 0.0}
  dense |= {f'moe.{key}': value for key, value in none.items()}
  flags = (f'--config.data.sources={corpus}', '--config.data.holdout=0.15')
  with one_device():
    train(programs.config(flags, **short, **dense, **{'evaluation.every_steps': 0}), workdir)
  return workdir


def exported(workdir, folder):
  """Returns a run in the released layout: (config.json, tensors)."""
  to_hf(workdir, folder)
  return json.loads((folder / 'config.json').read_text()), read(folder)


@pytest.mark.parametrize('name', DIVISIONS)
def test_shared_experts_and_a_group_hold_every_unit(name):
  sizes, (group, groups, copies) = DIVISIONS[name]
  shared, *_, width = sizes
  found = divide(moe_config(*sizes), 80, np.random.default_rng(0))
  assert (found.group, found.groups, set(found.copies_X)) == (group, groups, copies)
  assert found.parts_GF.shape == (group, width)
  assert all(len(set(part)) == width for part in found.parts_GF)  # no unit twice in an expert
  assert list(found.shared_X) == list(range(shared * width))
  held = [*found.shared_X, *found.parts_GF.ravel()]
  assert [held.count(unit) for unit in range(80)] == list(found.copies_X)


@pytest.mark.parametrize('name', CASES)
def test_the_first_step_is_the_dense_model(name, weights, llama, tmp_path):
  upcycle(llama, moe_config(*DIVISIONS[name][0]), tmp_path / 'run')
  truth_LV = released.logits(LLAMA, weights, TOKENS_L)
  found_LV = released.logits(*exported(tmp_path / 'run', tmp_path / 'hf'), TOKENS_L)
  assert np.abs(truth_LV).max() > 2
  np.testing.assert_allclose(found_LV, truth_LV, rtol=0, atol=1e-5)


def test_so_it_is_by_the_model_itself(weights, upcycled):
  truth_LV = released.logits(LLAMA, weights, TOKENS_L)
  np.testing.assert_allclose(logits(upcycled, TOKENS_L), truth_LV, rtol=0, atol=1e-5)


def assert_layers_are(run, weights, first_layer, routed):
  """Compares shared experts plus each sum that `routed` makes of the experts' outputs, an array
  [L, D] per expert, with the dense FFN.
  """
  moe = jax.tree.map(np.float64, run.params['moe_blocks']['moe'])
  u_LD, names = np.random.default_rng(2).normal(size=(5, 32)), ('gate', 'up', 'down')

  def ffn(gate, up, down):
    hidden = u_LD @ gate
    return (hidden / (1 + np.exp(-hidden)) * (u_LD @ up)) @ down

  for layer in range(first_layer, 3):
    prefix = f'model.layers.{layer}.mlp'
    truth_LD = ffn(*(weights[f'{prefix}.{x}_proj.weight'].T.astype(np.float64) for x in names))
    of = lambda kind, layer=layer: [moe[kind][x][layer - first_layer] for x in names]
    shared_LD, experts_ELD = ffn(*of('shared')), [ffn(*each) for each in zip(*of('experts'))]
    for routed_LD in routed(experts_ELD):
      np.testing.assert_allclose(shared_LD + routed_LD, truth_LD, rtol=0, atol=1e-5)


def test_a_layer_is_the_ffn_whichever_group_is_chosen(weights, upcycled):
  """This covers groups that no token of a text chooses. All gates are 1/E."""
  groups = lambda experts_ELD: [sum(experts_ELD[first : first + 6]) / 12 for first in (0, 6)]
  assert_layers_are(upcycled, weights, 1, groups)


def test_a_layer_is_the_ffn_whatever_the_hash(weights, llama, tmp_path):
  """A token's experts are 4 consecutive ones, wrapping around; their gates are 1."""
  upcycle(llama, moe_config(1, 8, 4, 24, **{'moe.router': 'hash'}), tmp_path / 'run')
  chosen = lambda experts_ELD: [
    sum(experts_ELD[(first + i) % 8] for i in range(4)) for first in range(8)
  ]
  assert_layers_are(load_run(tmp_path / 'run'), weights, 0, chosen)


def test_all_but_the_ffns_is_the_dense_run_byte_for_byte(llama, upcycled):
  dense = load_run(llama)
  ours, blocks = dict(upcycled.params), dense.params['dense_blocks']
  experts = dict(ours.pop('moe_blocks'))
  router_NDE = np.asarray(experts.pop('moe')['router']['experts'])
  first, rest = (jax.tree.map(lambda x, s=s: x[s], blocks) for s in (slice(1), slice(1, None)))
  rest.pop('mlp')
  jax.tree.map(np.testing.assert_array_equal, ours.pop('dense_blocks'), first)
  jax.tree.map(np.testing.assert_array_equal, experts, rest)
  others = {k: v for k, v in dense.params.items() if k != 'dense_blocks'}
  jax.tree.map(np.testing.assert_array_equal, ours, others)
  # All experts of a group share one router column.
  np.testing.assert_array_equal(router_NDE[..., :6], np.repeat(router_NDE[..., :1], 6, axis=-1))
  np.testing.assert_array_equal(router_NDE[..., 6:], np.repeat(router_NDE[..., 6:7], 6, axis=-1))
  assert 0 < np.abs(router_NDE).max() < 1e-5 and (router_NDE[..., 0] != router_NDE[..., 6]).all()


def test_a_random_router_is_a_new_runs_and_the_seed_deals_anew(llama, upcycled, tmp_path):
  options = Options(router='random', seed=1)
  made = upcycle(llama, upcycled.config, tmp_path / 'run', options)
  other = load_run(tmp_path / 'run').params['moe_blocks']['moe']
  assert 0.004 < float(other['router']['experts'].std()) < 0.008  # init_std is 0.006
  assert any('not even' in note for note in made.notes)
  ours = upcycled.params['moe_blocks']['moe']
  assert not np.array_equal(other['experts']['up'], ours['experts']['up'])
  np.testing.assert_array_equal(other['shared']['down'], ours['shared']['down'])


def test_a_bfloat16_run_stays_so_or_is_widened_exactly(upcycled, tmp_path):
  hf = LLAMA | {'torch_dtype': 'bfloat16'}
  narrow = tensors(hf, dtype=ml_dtypes.bfloat16)
  from_hf(write(tmp_path / 'hf', hf, narrow), tmp_path / 'dense')
  wide = {name: w.astype(np.float32) for name, w in narrow.items()}
  truth_LV = released.logits(LLAMA, wide, TOKENS_L)
  for dtype, tolerance in ((None, 0.1), ('float32', 1e-5)):
    workdir = tmp_path / f'run {dtype}'
    made = upcycle(tmp_path / 'dense', upcycled.config, workdir, Options(dtype=dtype))
    assert any('rounded to bfloat16' in note for note in made.notes) == (dtype is None)
    config, found = exported(workdir, tmp_path / f'out {dtype}')
    assert config['torch_dtype'] == (dtype or 'bfloat16')
    found_LV = released.logits(config, found, TOKENS_L)
    np.testing.assert_allclose(found_LV, truth_LV, rtol=0, atol=tolerance)


def test_a_trained_run_is_gone_on_with_from_where_it_was(trained, tmp_path):
  told = in_process.check(
    *('convert', f'--upcycle={trained}', f'--workdir={tmp_path}/start'),
    *(f'--config={tiny.__file__}', '--config.moe.experts_per_token=3'),
    '--config.moe.num_experts=12',
  )
  assert 'parameters of step 8' in told and 'each hidden unit of the dense FFN is 1 times' in told
  dense, start = load_run(trained), load_run(tmp_path / 'start')
  tokens_L = np.array(dense.tokenizer.encode('the expert router'))
  assert start.tokenizer.to_bytes() == dense.tokenizer.to_bytes()
  found_LV, truth_LV = (
    released.logits(*exported(workdir, tmp_path / f'{workdir.name} out'), tokens_L)
    for workdir in (tmp_path / 'start', trained)
  )
  np.testing.assert_allclose(found_LV, truth_LV, rtol=0, atol=1e-5)
  (part,) = json.loads((tmp_path / 'start' / provenance.FILE).read_text())
  assert part['upcycled_from']['path'] == str(trained) and part['upcycled_from']['step'] == 8
  warm = dataclasses.replace(start.config.train, init_from=str(tmp_path / 'start'))
  source = find(dataclasses.replace(start.config, train=warm))
  assert source.step == 0 and not source.new


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
  'a part trained': (
    (1, 8, 4, 16),
    {'finetune.trainable': 'router_frozen'},
    'finetune.trainable=router_frozen: leave it out',
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD)
def test_a_config_that_does_not_fit_is_one_line_and_leaves_nothing(name, llama, tmp_path):
  sizes, overrides, words = BAD[name]
  with pytest.raises(UserError) as error:
    upcycle(llama, moe_config(*sizes, **overrides), tmp_path / 'run')
  assert words in str(error.value) and '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_damaged_run_or_one_with_experts_leaves_nothing(llama, upcycled, tmp_path):
  config = upcycled.config
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
