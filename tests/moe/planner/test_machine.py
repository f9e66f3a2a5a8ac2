"""Names of machines, and the program's one-line errors about them."""

import importlib.util
from pathlib import Path

import pytest

from moe.errors import UserError
from moe.planner.compiling import asked_for
from moe.planner.machine import parse
from tests import in_process
from tests.launch.runs import programs

CONFIG = '--config=experiments/scaling.py:deepseek_moe_16b'


def test_names():
  assert (
    parse('v5p:4x4x4').num_devices,
    parse('v5e:2x4').num_devices,
    parse('h100:8').num_devices,
  ) == (64, 8, 8)
  assert parse('v6e:4x8').sides == (4, 8)


@pytest.mark.parametrize(
  ('topology', 'words'),
  [
    ('v5p', 'is not CHIP:SIZE, as v5e:2x4'),
    ('v5p:4x', 'is not CHIP:SIZE'),
    ('', 'is not CHIP:SIZE'),
    ('v4:2x2', "'v4' is none of v5e, v5p, v6e, h100"),
    ('v5p:4x4', 'v5p takes 3 sides, as v5p:4x4x4'),
    ('v5e:2x2x2', 'v5e takes 2 sides, as v5e:2x4'),
    ('h100:2x4', 'h100 takes a number'),
    ('h100:12', 'servers of 8: up to 8 devices, or a multiple'),
    ('v5e:0x4', 'has no devices'),
  ],
)
def test_wrong_names_say_what_is_wrong(topology, words):
  with pytest.raises(UserError, match=words):
    parse(topology)


def test_the_program_fails_in_one_line():
  assert '--topology=CHIP:SIZE is required' in programs.error_line('plan', CONFIG)
  assert "'v9' is none of" in in_process.error_line('plan', CONFIG, '--topology=v9:2x2')
  if not importlib.util.find_spec('libtpu'):
    line = in_process.error_line('plan', CONFIG, '--topology=v5e:2x4')
    assert 'make setup-aot, then .venv-tpu/bin/python' in line


def test_the_environments_have_the_names_that_the_makefile_gives_them():
  makefile = (Path(__file__).parents[3] / 'Makefile').read_text(encoding='utf-8')
  assert 'setup-aot: .venv-tpu/.installed .venv-gpu/.installed' in makefile


def test_how_much_a_refused_program_asked_for():
  with_arguments = (
    'Ran out of memory on HBM, the total memory required for HLO '
    'temporaries (26.52G) exceeds 15.75G'
  )
  assert asked_for(with_arguments) == int(26.52 * 2**30)
  of_all = 'Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm.'
  assert asked_for(of_all) == int(512.5 * 2**20)
  with pytest.raises(UserError, match=r'too big for the chip: .*Used 66\.03M of 63\.94M vmem'):
    asked_for(
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.\nUsed 66.03M of 63.94M vmem.'
    )
  assert asked_for('something else') == 0
