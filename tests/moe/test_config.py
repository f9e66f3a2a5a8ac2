"""The keys of moe/config.py: their allowed values, and configs of other versions of the code."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from moe import config as moe_config
from moe import config_page
from moe.config import KEYS
from moe.errors import UserError
from moe.keys import flatten, unflatten

ROOT = Path(__file__).parents[2]


def names(text):
  return text.split()


# The least value of each number, from what its use needs.
# Every key that is a number is in one of these lists.
AT_LEAST_1 = names("""
  model.vocab_size model.num_layers model.d_model model.num_heads model.num_kv_heads model.head_dim
  model.rope_base moe.device_groups mesh.receive_buffer data.seq_len data.batch_size
  data.num_threads data.prefetch train.num_steps train.microbatches train.log_every train.loss_chunk
  evaluation.batch_size evaluation.max_batches evaluation.task_limit checkpoint.every_steps
  checkpoint.keep_last
""")
AT_LEAST_2 = ['moe.wide_factor']
AT_LEAST_0 = names("""
  model.num_dense_layers model.d_ff model.init_std moe.d_expert moe.num_experts
  moe.experts_per_token moe.num_shared_experts moe.expert_balance_weight moe.device_balance_weight
  moe.router_z_weight moe.hash_seed moe.bias_update_rate moe.device_limit
  moe.wide_experts model.unroll
  data.vocab_size data.seed optimizer.warmup_steps
  optimizer.start_step finetune.lora_rank
  optimizer.decay_factor optimizer.final_lr_fraction optimizer.weight_decay optimizer.clip_norm
  train.seed train.heatmap_every train.max_bad_steps evaluation.every_steps checkpoint.keep_best
""")
ABOVE_0 = names("""
  model.norm_eps optimizer.peak_lr optimizer.eps data.tokenizer_sample_mb data.max_document_mb
  finetune.lora_alpha moe.gate_scale moe.gate_mass
""")
SHARES = names('data.holdout evaluation.context optimizer.b1 optimizer.b2')
AXES = [f'mesh.{axis}' for axis in ('data', 'fsdp', 'expert', 'tensor', 'stage')]
NUMBERS = [*AT_LEAST_1, *AT_LEAST_2, *AT_LEAST_0, *ABOVE_0, *SHARES, *AXES]


def changed(**values):
  """The defaults with some keys changed, `model__d_model` for model.d_model, as a Config."""
  return of({name.replace('__', '.'): value for name, value in values.items()})


def of(changes):
  flat = flatten(moe_config.defaults().to_dict())
  return moe_config.from_config_dict(unflatten(flat | changes))


def refusal(name, value) -> str:
  """The error for one value; it must be one line."""
  with pytest.raises(UserError) as error:
    of({name: value})
  assert '\n' not in str(error.value)
  return str(error.value)


def test_every_number_has_a_least_value():
  numbers = [name for name, each in KEYS.items() if each.type in (int, float)]
  assert sorted(numbers) == sorted(NUMBERS)


@pytest.mark.parametrize(
  ('names', 'value', 'words'),
  [
    (AT_LEAST_1, 0, 'at least 1'),
    (AT_LEAST_2, 1, 'at least 2'),
    (AT_LEAST_0, -1, 'at least 0'),
    (ABOVE_0, 0, 'greater than 0'),
    (SHARES, -1, 'at least 0 and below 1'),
    (SHARES, 1, 'at least 0 and below 1'),
    (AXES, 0, 'at least 1, or -1'),
    (AXES, -2, 'at least 1, or -1'),
  ],
)
def test_a_number_out_of_range_is_named_with_what_would_be_right(names, value, words):
  for name in names:
    assert refusal(name, value).startswith(f'config.{name} must be {words}, not {value}')


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 1e39, -1e39, 10**400, 1e-45])
def test_no_number_may_be_one_that_no_run_can_use(value):
  for name in NUMBERS:
    assert refusal(name, value).startswith(f'config.{name} must be ')
  for items in ((value,), (0.5, value)):
    assert refusal('optimizer.decay_at', items).startswith('config.optimizer.decay_at must be ')


def test_a_size_or_seed_is_bounded():
  """int32 counters hold at most 2³¹ − 1. jax.random.key takes 32 bits of a seed
  and would drop the others.
  """
  for name in NUMBERS:
    if KEYS[name].type is int:
      assert 'must be at most ' in refusal(name, 2**32), name
  for name in ('train.seed', 'data.seed', 'moe.hash_seed'):
    assert of({name: 2**32 - 1})
  assert 'decay_factor must be at most 1' in refusal('optimizer.decay_factor', 1.5)
  assert of({'train.num_steps': 2**31 - 1})


@pytest.mark.parametrize(
  ('name', 'value', 'words'),
  [
    ('model.d_model', 1.5, 'an integer'),
    ('model.d_model', True, 'an integer'),
    ('model.d_model', '64', 'an integer'),
    ('model.d_model', None, 'an integer'),
    ('optimizer.peak_lr', True, 'a number'),
    ('optimizer.decay_at', 0.8, 'a tuple of numbers'),
    ('optimizer.decay_at', ('0.8',), 'a tuple of numbers'),
    ('optimizer.decay_at', (0.8, 1.5), 'at most 1'),
    ('optimizer.decay_at', (0.0,), 'greater than 0'),
    ('data.reset_at_documents', 1, 'True or False'),
    ('data.dir', 3, 'a string'),
    ('model.dtype', 'float16', 'one of bfloat16 | float32'),
    ('mesh.zero', 2, 'one of 1 | 3'),
    ('mesh.zero', True, 'one of 1 | 3'),
    ('mesh.zero', 3.0, 'one of 1 | 3'),
  ],
)
def test_a_value_of_another_type_is_named(name, value, words):
  assert refusal(name, value) == f'config.{name} must be {words}, not {value!r}'


@pytest.mark.parametrize('character', '\n\r\t\0\x1b\x7f\x85\u2028\u2029\ud800')
def test_text_has_no_character_that_would_break_a_command_or_a_line(character):
  for name in (name for name, each in KEYS.items() if each.type is str):
    assert f'config.{name} must be text without line breaks' in refusal(name, f'a{character}b')


def test_text_may_hold_everything_else():
  odd = 'Zürich 東京 "x" \'y\' [z] 100%; $HOME `a` * ? # ~'
  assert changed(data__dir=odd, name=odd).data.dir == odd


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'mesh.data': -1, 'mesh.fsdp': -1}, 'only one of mesh.data, mesh.fsdp'),
    ({'model.num_kv_heads': 3}, 'model.num_heads=10 is not divisible by model.num_kv_heads=3'),
    ({'model.head_dim': 5}, 'model.head_dim=5 must be even'),
    ({'model.num_dense_layers': 10, 'model.d_ff': 8}, 'model.num_dense_layers=10 is more than'),
    ({'model.num_dense_layers': 1}, 'model.num_dense_layers=1 needs model.d_ff'),
    (
      {'moe.num_experts': 0, 'moe.experts_per_token': 0, 'moe.num_shared_experts': 0},
      'moe.num_experts and moe.num_shared_experts are both 0',
    ),
    ({'moe.d_expert': 0}, 'moe.d_expert=0 must be greater than 0'),
    ({'moe.experts_per_token': 64}, 'moe.experts_per_token=64 is more than moe.num_experts=63'),
    ({'moe.experts_per_token': 0}, 'moe.experts_per_token=0 must be at least 1'),
    ({'moe.device_groups': 4}, 'moe.device_groups=4 does not divide moe.num_experts=63'),
    ({'data.vocab_size': 9000}, 'data.vocab_size=9000 is more than model.vocab_size=8000'),
    ({'train.microbatches': 3}, 'train.microbatches=3 does not divide data.batch_size=2048'),
    ({'data.seq_len': 2**20}, 'data.batch_size=2048 × data.seq_len=1048576 tokens a step'),
  ],
)
def test_keys_that_contradict_each_other_are_named(changes, words):
  with pytest.raises(UserError) as error:
    of(changes)
  assert str(error.value).startswith(words)


def test_heads_need_not_share_the_width_among_them():
  assert changed(model__num_heads=6, model__num_kv_heads=3).model.head_dim == 128


@pytest.mark.parametrize(
  ('mistyped', 'near'),
  [
    ('model.d_modle', 'model.d_model'),
    ('modle.d_model', 'model.d_model'),
    ('num_steps', 'train.num_steps'),
    ('moe.n_experts', 'moe.num_experts'),
    ('batchsize', 'data.batch_size'),
    ('lr', 'optimizer.peak_lr'),
  ],
)
def test_an_unknown_key_names_the_nearest(mistyped, near):
  assert f'{mistyped!r}: the nearest valid key is {near!r}' in str(moe_config.unknown_key(mistyped))


@pytest.mark.parametrize('name', ['attention_sink', 'model.qk_norm', 'mesh.tp', 'model.keys', ''])
def test_nothing_is_suggested_where_nothing_is_near(name):
  assert str(moe_config.unknown_key(name)).endswith('docs/configuration.md lists the keys')


def test_a_section_is_no_value():
  values = moe_config.defaults().to_dict() | {'model': 3}
  with pytest.raises(UserError, match=r'config\.model must be a section of keys, not 3'):
    moe_config.from_config_dict(values)


def test_a_stored_config_is_read_back():
  config = changed(optimizer__decay_at=(0.5,), mesh__fsdp=2)
  assert moe_config.from_stored(json.loads(json.dumps(config.to_dict())), 'config.json') == config


@pytest.fixture
def later(monkeypatch):
  """An older config. The code is patched to a later version, which has the new key train.seed and
  another name for moe.num_experts.
  """
  new = KEYS | {'train.seed': dataclasses.replace(KEYS['train.seed'], default=5, before=3)}
  monkeypatch.setattr(moe_config, 'KEYS', new)
  monkeypatch.setattr(moe_config, 'ALIASES', {'moe.experts': 'moe.num_experts'})
  stored = moe_config.defaults().to_dict()
  stored['moe']['experts'] = 31
  del stored['moe']['num_experts'], stored['train']['seed']
  return stored


def test_an_older_config_means_what_it_meant_then(later):
  config = moe_config.from_stored(later, 'config.json')
  assert (config.moe.num_experts, config.train.seed) == (31, 3)
  assert moe_config.defaults().train.seed == 5
  # A config file, unlike a stored config, must have every key under its present name.
  with pytest.raises(UserError, match=r"'moe\.experts' is now called 'moe\.num_experts'"):
    moe_config.from_config_dict(later)
  del later['moe']
  with pytest.raises(UserError, match=r"'moe\.num_experts' is missing"):
    moe_config.from_config_dict(later)


def test_a_key_keeps_its_first_name_for_hashes(later):
  assert moe_config.first_name('moe.num_experts') == 'moe.experts'
  assert moe_config.first_name('moe.d_expert') == 'moe.d_expert'


def test_old_names_lead_to_keys_of_today():
  for old, now in moe_config.ALIASES.items():
    assert old not in KEYS and now in KEYS


@pytest.mark.parametrize(
  ('stored', 'words'),
  [
    ([], "F must be sections of keys, not '[]'"),
    (
      {'model': 3},
      "F has config keys that are unknown here, of another version of the code: 'model'",
    ),
    ({'model': {'a': 1, 'b': 2}}, "another version of the code: 'model.a', 'model.b'"),
    ({'moe': {'num_experts': {'a': 1}}}, 'F: config.moe.num_experts must be an integer'),
    ({'moe': {'num_experts': 'many'}}, "F: config.moe.num_experts must be an integer, not 'many'"),
    ({'optimizer': {'decay_factor': math.nan}}, 'F: config.optimizer.decay_factor must be finite'),
    ({'moe': {'experts_per_token': 64}}, 'F: moe.experts_per_token=64 is more than'),
  ],
)
def test_a_stored_config_that_cannot_be_read_is_named(stored, words):
  with pytest.raises(UserError) as error:
    moe_config.from_stored(stored, 'F')
  assert words in str(error.value)


def test_what_a_run_that_goes_on_may_change():
  free = {name for name in KEYS if not moe_config.affects_training(name)}
  assert {
    name for name in free if name.partition('.')[0] in ('mesh', 'evaluation', 'checkpoint')
  } == {name for name in KEYS if name.partition('.')[0] in ('mesh', 'evaluation', 'checkpoint')}
  rounding = {
    name for name in KEYS if moe_config.affects_training(name) and not moe_config.must_stay(name)
  }
  assert rounding == {
    'train.microbatches',
    'train.loss_chunk',
    'model.remat',
    'model.unroll',
    'ops.implementation',
  }
  assert {
    name for name in free if name.partition('.')[0] not in ('mesh', 'evaluation', 'checkpoint')
  } == {
    'name',
    'train.log_every',
    'train.heatmap_every',
    'train.max_bad_steps',
    'train.writers',
    'train.profile_steps',
    'data.max_document_mb',
    'data.dir',
    'data.num_threads',
    'data.prefetch',
  }


def test_the_page_of_keys_is_the_one_made_from_them():
  made, file = config_page.page(), ROOT / 'docs/configuration.md'
  for name, each in KEYS.items():
    assert f'`{name}`' in made and f'| `{each.default!r}` |' in made
    assert each.meaning.replace('|', '\\|') in made
  written = file.read_text(encoding='utf-8')
  assert made == written, 'python -m launch.describe --keys > docs/configuration.md'


@pytest.mark.parametrize('value', ['head', ('head', 3), (True,), ('a\nb',)])
def test_patterns_of_parameters_are_texts(value):
  # A single text is refused too: its items would be its letters.
  assert refusal('train.init_skip', value).startswith('config.train.init_skip must be ')


def test_what_a_warm_start_takes_needs_a_source():
  source = {'train__init_from': 'runs/a'}
  for name, value in (('init_skip', ('head',)), ('init_optimizer', True), ('init_data', True)):
    assert getattr(changed(**source, **{f'train__{name}': value}).train, name) == value
    assert f'train.{name}={value!r} needs train.init_from' in refusal(f'train.{name}', value)
