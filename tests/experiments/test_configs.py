"""Every published config: frozen as golden text, valid, and kept in its proportions by proxy.py.

After an intended change, write the golden files anew and review their diff:

  python -m tests.experiments.test_configs
"""

import difflib
import importlib
from pathlib import Path

import pytest

from experiments import ablations, proxy, scaling, validation
from launch.describe import FILES
from moe import config as moe_config
from moe.errors import UserError

GOLDEN = Path(__file__).parent / 'golden'
REGENERATE = 'python -m tests.experiments.test_configs'
MODULES = {file: importlib.import_module(f'experiments.{file}') for file in FILES}
VARIANTS = [(file, name) for file, module in MODULES.items() for name in module.VARIANTS]


def golden_text(file: str, name: str) -> str:
  config = moe_config.from_config_dict(MODULES[file].get_config(name)).to_dict()
  return ''.join(
    f'{key} = {value!r}\n' for key, value in sorted(moe_config.flatten(config).items())
  )


@pytest.mark.parametrize(('file', 'name'), VARIANTS)
def test_golden_text(file, name):
  path = GOLDEN / f'{file}_{name}.txt'
  assert path.exists(), f'{path} is missing: {REGENERATE}'
  golden, now = path.read_text(encoding='utf-8'), golden_text(file, name)
  changes = difflib.unified_diff(
    golden.splitlines(), now.splitlines(), 'golden', 'now', n=0, lineterm=''
  )
  assert golden == now, '\n'.join(
    [f'{file}:{name} changed; if that is meant: {REGENERATE}', *changes]
  )


def test_no_golden_text_without_its_config():
  assert {path.name for path in GOLDEN.iterdir()} == {
    f'{file}_{name}.txt' for file, name in VARIANTS
  }


@pytest.mark.parametrize(('file', 'name'), VARIANTS)
def test_a_config_is_locked_and_carries_its_name(file, name):
  config = MODULES[file].get_config(name)
  assert config.name == f'{file}:{name}'
  assert config.is_locked


@pytest.mark.parametrize('file', FILES)
def test_without_a_name_a_file_gives_its_main_variant(file):
  default = {'scaling': 'deepseek_moe_16b', 'ablations': 'granularity_0_2_16'}.get(
    file, 'deepseek_moe'
  )
  assert MODULES[file].get_config().name == f'{file}:{default}'


@pytest.mark.parametrize('file', FILES)
def test_an_unknown_variant_names_the_valid_ones_nearest_first(file):
  for name in MODULES[file].VARIANTS:
    with pytest.raises(UserError, match=f'no variant .*: choose one of {name}(,|$)'):
      MODULES[file].get_config(f'{name}x')


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
    assert (
      0.996 * relative <= width + 0.01 < relative + 8.01
    )  # up to a multiple of 8, but for the original's own
  every_layer = original.model.num_dense_layers == original.model.num_layers
  assert small.model.num_dense_layers == (
    small.model.num_layers if every_layer else original.model.num_dense_layers
  )
  heads_share = small.model.num_heads * original.model.num_kv_heads / original.model.num_heads
  assert small.model.num_kv_heads == max(1, heads_share)


def test_proxy_has_every_variant_once():
  names = [name for module in (validation, scaling, ablations) for name in module.VARIANTS]
  assert sorted(names) == sorted(set(names)) == sorted(proxy.VARIANTS)


def test_groups_that_are_balanced_are_the_devices_of_the_mesh():
  """Eq. 15 balances what the devices of expert parallelism get. Two keys, so that the loss is the same on any mesh."""
  configs = [file.get_config(name) for name, file in proxy.VARIANTS.items()]
  balanced = [
    config for config in configs if config.moe.device_balance_loss and config.mesh.expert > 1
  ]
  assert len(balanced) == 3  # the 145B and its siblings
  assert all(config.moe.device_groups == config.mesh.expert for config in balanced)


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
  assert (
    width(scaling, 'deepseek_moe_16b') == width(scaling, 'deepseek_moe_145b') == 1408
  )  # the published widths
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


def regenerate() -> None:
  GOLDEN.mkdir(exist_ok=True)
  for path in GOLDEN.glob('*.txt'):
    path.unlink()
  for file, name in VARIANTS:
    (GOLDEN / f'{file}_{name}.txt').write_text(golden_text(file, name), encoding='utf-8')
  print(f'{len(VARIANTS)} files written to {GOLDEN}')


if __name__ == '__main__':
  regenerate()
