"""Every published config: frozen as golden text, valid, and kept in its proportions by proxy.py.

golden/base.txt holds what every config starts from. golden/FILE.txt holds where a file's variants
differ from that: first what all of them change, then what each changes besides. A new key that no
variant sets changes no golden text. After an intended change, write the texts anew and review
their diff:

  python -m tests.experiments.test_configs
"""

import ast
import functools
from pathlib import Path

import pytest

from experiments import ablations, base, proxy, scaling, sft, validation, variants
from experiments.shipped import FILES as MODULES
from moe import config as moe_config
from moe.errors import UserError

GOLDEN = Path(__file__).parent / 'golden'
REGENERATE = 'python -m tests.experiments.test_configs'
FILES = tuple(MODULES)
VARIANTS = [(file, name) for file, module in MODULES.items() for name in module.VARIANTS]
COMMON = 'in all'


def values(config) -> dict[str, object]:
  return moe_config.flatten(moe_config.from_config_dict(config).to_dict())


BASE = values(base.get_config())


def own(file: str, name: str) -> dict[str, object]:
  """The keys, and their values, in which a variant differs from base.py."""
  return {
    key: value
    for key, value in values(MODULES[file].get_config(name)).items()
    if key != 'name' and value != BASE[key]
  }


@functools.cache
def golden(file: str) -> dict[str, dict[str, object]]:
  """What a golden file says: {heading: {key: value}}."""
  found, heading = {}, COMMON
  for line in (GOLDEN / f'{file}.txt').read_text(encoding='utf-8').splitlines():
    if line.startswith('['):
      heading = line.strip('[]')
      found[heading] = {}
    elif line:
      key, _, value = line.partition(' = ')
      found[heading][key] = ast.literal_eval(value)
  return found


@pytest.mark.parametrize(('file', 'name'), VARIANTS)
def test_golden_text(file, name):
  frozen = golden(file)
  if name not in frozen:
    pytest.skip(f'{file}:{name} is not frozen yet: {REGENERATE}')
  expected, now = frozen[COMMON] | frozen[name], own(file, name)
  changed = {
    key: (expected.get(key, BASE.get(key)), now.get(key, BASE.get(key)))
    for key in expected.keys() | now.keys()
    if expected.get(key, BASE.get(key)) != now.get(key, BASE.get(key))
  }
  assert not changed, f'{file}:{name} changed; if that is meant: {REGENERATE}: {changed}'
  assert all(type(now[key]) is type(expected[key]) for key in now.keys() & expected.keys())


def test_what_every_config_starts_from():
  frozen = golden('base')[COMMON]
  assert {key: BASE.get(key) for key in frozen} == frozen, f'if that is meant: {REGENERATE}'


def test_no_golden_text_without_its_config():
  assert {path.stem for path in GOLDEN.iterdir()} == {'base', *FILES}
  for file in FILES:
    assert golden(file).keys() <= {COMMON, *MODULES[file].VARIANTS}


@pytest.mark.parametrize(('file', 'name'), VARIANTS)
def test_a_config_is_locked_and_carries_its_name(file, name):
  config = MODULES[file].get_config(name)
  assert config.name == f'{file}:{name}'
  assert config.is_locked


@pytest.mark.parametrize('file', FILES)
def test_without_a_name_a_file_gives_its_main_variant(file):
  default = {
    'scaling': 'deepseek_moe_16b',
    'ablations': 'granularity_0_2_16',
    'sft': 'deepseek_moe_16b_chat',
  }.get(file, 'deepseek_moe')
  assert MODULES[file].get_config().name == f'{file}:{default}'


@pytest.mark.parametrize('file', FILES)
def test_an_unknown_variant_names_the_valid_ones_nearest_first(file, monkeypatch):
  monkeypatch.chdir(Path(__file__).parents[2])
  for name in MODULES[file].VARIANTS:
    with pytest.raises(
      UserError, match=f'^experiments/{file}.py has no variant .*: choose one of {name}(,|$)'
    ):
      MODULES[file].get_config(f'{name}x')


def test_a_file_of_ones_own_is_named_where_it_lies(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for file, shown in (
    (tmp_path / 'mine' / 'my_moe.py', 'mine/my_moe.py'),
    ('mine/my_moe.py', 'mine/my_moe.py'),
    ('/elsewhere/my_moe.py', '/elsewhere/my_moe.py'),
  ):
    with pytest.raises(UserError, match=f"^{shown} has no variant 'x': choose one of small$"):
      variants.build(str(file), {'small': {}}, 'x')
    assert variants.build(str(file), {'small': {}}, 'small').name == 'my_moe:small'


@pytest.mark.parametrize('name', proxy.VARIANTS)
def test_a_proxy_has_the_architecture_of_its_original(name):
  original, small = proxy.VARIANTS[name].get_config(name), proxy.get_config(name)
  for key in original.moe:
    if key != 'd_expert':
      assert small.moe[key] == original.moe[key], key
  for width, full in (
    (small.moe.d_expert, original.moe.d_expert),
    (small.model.d_ff, original.model.d_ff),
  ):
    relative = full / original.model.d_model * small.model.d_model
    assert (full == 0) == (width == 0)
    # Rounded up to a multiple of 8, after taking off the original's own rounding of up to 0.4%.
    assert 0.996 * relative <= width + 0.01 < relative + 8.01
  every_layer = original.model.num_dense_layers == original.model.num_layers
  assert small.model.num_dense_layers == (
    small.model.num_layers if every_layer else original.model.num_dense_layers
  )
  heads_share = small.model.num_heads * original.model.num_kv_heads / original.model.num_heads
  assert small.model.num_kv_heads == max(1, heads_share)


def test_proxy_has_every_variant_once():
  names = [name for module in (validation, scaling, ablations, sft) for name in module.VARIANTS]
  assert sorted(names) == sorted(set(names)) == sorted(proxy.VARIANTS)


def test_groups_that_are_balanced_are_the_devices_of_the_mesh():
  """Eq. 15 balances the devices of expert parallelism. Its groups have a key of their own,
  so that the loss is the same on any mesh.
  """
  configs = [file.get_config(name) for name, file in proxy.VARIANTS.items()]
  balanced = [
    config for config in configs if config.moe.device_balance_weight and config.mesh.expert > 1
  ]
  assert len(balanced) == 3  # the 145B and its siblings
  assert all(config.moe.device_groups == config.mesh.expert for config in balanced)


@pytest.mark.parametrize('name', sft.VARIANTS)
def test_chat_models_are_their_base_models_trained_as_section_6_1_says(name):
  """1.4M examples, 8 epochs of them, 1,024 a step; a base model's checkpoint fits."""
  base_name = name.removesuffix('_chat').removesuffix('_sft')
  for module, file in ((sft, scaling), (proxy, proxy)):
    config, original = module.get_config(name), file.get_config(base_name)
    assert (config.model, config.moe) == (original.model, original.moe)
    assert (config.optimizer.schedule, config.optimizer.warmup_steps) == ('constant', 0)
  config = sft.get_config(name)
  assert config.train.num_steps == 8 * 1_400_000 // 1024
  assert (config.optimizer.peak_lr, config.data.seq_len) == (1e-5, 4096)
  assert config.data.batch_size * config.data.seq_len == 1024 * 512
  assert config.data.format == 'chat'


def test_expert_widths():
  width = lambda module, name: module.get_config(name).moe.d_expert
  assert [
    width(validation, name) for name in ('switch', 'deepseek_moe', 'gshard_x1_2', 'gshard_x1_5')
  ] == [
    3416,
    856,
    4096,
    5120,
  ]
  # The published widths.
  assert width(scaling, 'deepseek_moe_16b') == width(scaling, 'deepseek_moe_145b') == 1408
  assert width(scaling, 'gshard_137b') == 10_944


@pytest.mark.parametrize(
  ('name', 'shared', 'active', 'routed'),
  [
    ('granularity_0_2_16', 0, 2, 16),
    ('granularity_1_1_15', 1, 1, 15),
    ('granularity_1_3_31', 1, 3, 31),
    ('granularity_1_7_63', 1, 7, 63),
    ('shared_1', 1, 7, 63),
    ('shared_2', 2, 6, 62),
    ('shared_4', 4, 4, 60),
  ],
)
def test_ablations_split_the_same_experts(name, shared, active, routed):
  moe = ablations.get_config(name).moe
  assert (moe.num_shared_experts, moe.experts_per_token, moe.num_experts) == (
    shared,
    active,
    routed,
  )
  assert (shared + active) * moe.d_expert == pytest.approx(2 * 3416, rel=0.003)
  assert (shared + routed) * moe.d_expert == pytest.approx(16 * 3416, rel=0.003)


def _text(frozen: dict[str, dict[str, object]]) -> str:
  parts = [
    f'[{heading}]\n' + ''.join(f'{key} = {found[key]!r}\n' for key in sorted(found))
    for heading, found in frozen.items()
  ]
  return '\n'.join(parts)


def regenerate() -> None:
  GOLDEN.mkdir(exist_ok=True)
  texts = {'base': {COMMON: BASE}}
  for file, module in MODULES.items():
    each = {name: own(file, name) for name in module.VARIANTS}
    first, *others = each.values()
    common = {
      key: value
      for key, value in first.items()
      if all(key in other and other[key] == value for other in others)
    }
    texts[file] = {COMMON: common} | {
      name: {key: value for key, value in found.items() if key not in common}
      for name, found in each.items()
    }
  for file, frozen in texts.items():
    (GOLDEN / f'{file}.txt').write_text(_text(frozen), encoding='utf-8')
  print(f'{len(texts)} files written to {GOLDEN}')


if __name__ == '__main__':
  regenerate()
