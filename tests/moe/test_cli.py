"""The command line as users meet it: launch.describe, and small programs built on moe.cli."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import shipped
from moe import accounting_tables, cli
from moe import config as moe_config
from moe.errors import UserError
from tests import in_process

ROOT = Path(__file__).parents[2]
VALIDATION = '--config=experiments/validation.py:deepseek_moe'


def run(*arguments):
  return subprocess.run(
    [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
  )


def describe_json(*arguments):
  done = in_process.run('describe', *arguments, '--format=json')
  assert (done.returncode, done.stderr) == (0, '')
  return json.loads(done.stdout)


def fails(done, *words):
  """Asserts exit code 2, nothing on stdout, and one line on stderr that has every word."""
  assert done.returncode == 2, done
  assert done.stdout == ''
  assert 'Traceback' not in done.stderr
  assert done.stderr.startswith('error: ')
  assert done.stderr.endswith('\n')
  assert done.stderr.count('\n') == 1, done.stderr
  for word in words:
    assert word in done.stderr


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--config.model.d_modle=64', ["'model.d_modle'", "'model.d_model'"]),
    ('--config.num_steps=64', ["'num_steps'", "'train.num_steps'"]),
    ('--config.modle.d_model=64', ["'modle.d_model'", "'model.d_model'"]),
    ('--config.model.keys=1', ["'model.keys'"]),  # a method of ConfigDict, not a key
    ('--config.model=1', ['config.model is a section']),
    ('--config.model.d_model=abc', ['config.model.d_model must be an integer', "'abc'"]),
    ('--config.model.d_model=1.5', ['config.model.d_model must be an integer', "'1.5'"]),
    ('--config.optimizer.peak_lr=fast', ['config.optimizer.peak_lr must be a number', "'fast'"]),
    (
      '--config.data.reset_at_documents=maybe',
      ['config.data.reset_at_documents must be True or False', "'maybe'"],
    ),
    ('--config.optimizer.decay_at=(0.5,', ['config.optimizer.decay_at must be a tuple of numbers']),
    ('--config.optimizer.decay_at=late', ['config.optimizer.decay_at must be a tuple of numbers']),
    ('--config.model.dtype=float16', ['config.model.dtype must be one of bfloat16 | float32']),
    ('--config.moe.experts_per_token=64', ['moe.experts_per_token=64', 'moe.num_experts=63']),
    ('--config.optimizer.decay_factor=nan', ['config.optimizer.decay_factor must be finite']),
    ('--config.optimizer.decay_at=(1e999,)', ['config.optimizer.decay_at must be finite']),
    (
      '--config.train.seed=9223372036854775808',
      ['config.train.seed must be at most 4,294,967,295'],
    ),
    ('--config.data.dir=a\nb', ['config.data.dir must be text without line breaks', "'a\\nb'"]),
    ('--config.moe.attention_sink=1', ["'moe.attention_sink': docs/configuration.md"]),
    ('--config.moe.experts_per_token=-1', ['moe.experts_per_token', '-1']),
    ('--config.model.num_heads=7', ['model.num_heads=7', 'model.num_kv_heads=10']),
    ('--config.moe.device_groups=4', ['moe.device_groups=4', 'moe.num_experts=63']),
    ('--unknown_flag=1', ['unknown_flag']),
    ('--format=xml', ['--format', 'text|json']),
    ('stray', ["'stray'"]),
  ],
)
def test_a_bad_value_is_one_line_that_names_it(flag, words):
  fails(in_process.run('describe', VALIDATION, flag), *words)


def test_a_process_of_its_own_says_the_same():
  flag = '--config.model.d_modle=64'
  done, here = (
    run('-m', 'launch.describe', VALIDATION, flag),
    in_process.run('describe', VALIDATION, flag),
  )
  fails(done, "'model.d_modle'")
  assert (done.returncode, done.stdout, done.stderr) == (here.returncode, here.stdout, here.stderr)
  done = run('-m', 'launch.describe', VALIDATION, '--format=json')
  assert (done.returncode, done.stderr) == (0, '')
  assert json.loads(done.stdout) == describe_json(VALIDATION)


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (
      ['--config=experiments/validation.py:deepseek_mo'],
      ["'deepseek_mo'", 'choose one of deepseek_moe,'],
    ),
    (['--config=experiments/base.py:dense'], ['experiments/base.py', 'no variants']),
    (
      ['--config=experiments/absent.py'],
      ["'experiments/absent.py'", 'with the package are ablations'],
    ),
    (['--config=prxy:dense'], ["there is no config file 'prxy'", 'proxy']),
    (['--config=variants'], ["there is no config file 'variants'"]),
    (['--config=experiments/absent.py', '--config.train.num_steps=1'], ["'experiments/absent.py'"]),
    (['--config.train.num_steps=1'], ['--config.train.num_steps', 'not given']),
    ([], ['--config', '--all']),
    ([VALIDATION, '--all'], ['--config', '--all']),
  ],
)
def test_a_wrong_config_is_one_line(arguments, words):
  fails(in_process.run('describe', *arguments), *words)


def test_a_config_of_the_package_goes_by_its_name_in_any_folder(tmp_path, monkeypatch):
  shipped = str(ROOT / 'experiments/proxy.py')
  monkeypatch.chdir(ROOT)
  assert cli.config_path('experiments/proxy.py') == 'experiments/proxy.py'
  assert cli.config_path('proxy') == shipped
  monkeypatch.chdir(tmp_path)
  assert cli.config_path('proxy') == cli.config_path('experiments/proxy.py') == shipped
  for absent in ('proxy.py', 'other/proxy.py', 'experiments/proxy', 'experiments/mine.py', ''):
    with pytest.raises(UserError, match=r'no config file .* ablations, base, proxy, quickstart'):
      cli.config_path(absent)
  (tmp_path / 'experiments').mkdir()
  (tmp_path / 'experiments/proxy.py').touch()
  assert cli.config_path('experiments/proxy.py') == 'experiments/proxy.py'


@pytest.mark.parametrize(
  'arguments', [['--config', 'proxy:dense'], ['--config=proxy:dense'], ['--flagfile={flagfile}']]
)
def test_every_way_to_give_a_config_takes_its_name(arguments, tmp_path):
  flagfile = tmp_path / 'flags'
  flagfile.write_text('--config=proxy:dense\n')
  done = in_process.run('describe', *(each.format(flagfile=flagfile) for each in arguments))
  assert (done.returncode, done.stderr) == (0, '') and done.stdout.startswith('proxy:dense')


def test_a_folder_of_ones_own_called_experiments_hides_nothing(tmp_path):
  folder = tmp_path / 'experiments'
  folder.mkdir()
  (folder / '__init__.py').touch()
  (folder / 'depth.py').write_text('LAYERS = 3\n')
  (folder / 'my_moe.py').write_text(
    'from experiments import depth, variants\n\n'
    'def get_config(name="small"):\n'
    '  return variants.build(__file__, {"small": {"model.num_layers": depth.LAYERS}}, name)\n'
  )
  for spec, name in (('experiments/my_moe.py', 'my_moe:small'), ('proxy', 'proxy:deepseek_moe')):
    done = subprocess.run(
      [sys.executable, '-m', 'launch.describe', f'--config={spec}'],
      cwd=tmp_path,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
    )
    assert (done.returncode, done.stderr) == (0, ''), done
    assert done.stdout.startswith(name)


def test_a_renamed_key_is_understood_by_its_old_name(monkeypatch):
  monkeypatch.setitem(moe_config.ALIASES, 'model.depth', 'model.num_layers')
  old, new = (
    in_process.run('describe', VALIDATION, f'--config.{key}=3', '--format=json').stdout
    for key in ('model.depth', 'model.num_layers')
  )
  assert old == new != ''


@pytest.mark.parametrize(
  ('source', 'words'),
  [
    ('def get_config(:\n', ['line 1', 'syntax']),
    (
      (
        'from experiments import base\n\ndef get_config():\n'
        '  config = base.get_config()\n  config.model.d_modle = 1\n'
      ),
      ['line 5', "'d_modle'", "'model.d_model'"],
    ),
    ('import absent_module\n', ['line 1', 'absent_module']),
    ('def get_config():\n  return int("many")\n', ['line 2', 'ValueError', 'many']),
    ('def get_config():\n  return open("/absent/file")\n', ['line 2', '/absent/file']),
    ('def get_config():\n  pass\n', ['None']),
    ('x = 1\n', ['get_config']),
    (
      'from ml_collections import ConfigDict\n\ndef get_config():\n  return ConfigDict()\n',
      ["'name'", 'missing'],
    ),
  ],
)
def test_a_broken_config_file_is_one_line_with_its_place(tmp_path, source, words):
  file = tmp_path / 'broken.py'
  file.write_text(source, encoding='utf-8')
  fails(in_process.run('describe', f'--config={file}'), *words)


def test_overrides_take_every_kind_of_value():
  program = (
    'from moe import cli\n'
    'flag = cli.config_flag()\n'
    'def main(argv):\n'
    '  c = cli.config(flag)\n'
    '  print([c.optimizer.peak_lr, c.optimizer.decay_at, c.data.dir, '
    'c.data.reset_at_documents, c.train.num_steps])\n'
    'cli.run(main)\n'
  )
  done = in_process.run_source(
    *(
      program,
      VALIDATION,
      '--config.optimizer.peak_lr=1',
      '--config.optimizer.decay_at=(0.5,)',
    ),
    *(
      '--config.data.dir=123',
      '--noconfig.data.reset_at_documents',
      '--config.train.num_steps',
      '7',
    ),
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == "[1.0, (0.5,), '123', False, 7]\n"


@pytest.mark.parametrize(
  ('body', 'code', 'stderr'),
  [
    ('return 3', 3, ''),
    ('raise KeyboardInterrupt', 130, 'interrupted\n'),
    ('raise UserError("first\\n  second")', 2, 'error: first second\n'),
    (
      'raise MemoryError("no 8 GB left")',
      2,
      'error: out of memory: no 8 GB left: lower data.batch_size or evaluation.batch_size, raise '
      'train.microbatches, or set model.remat\n',
    ),
    ('logging.info("told only with --verbosity=0")', 0, ''),
  ],
)
def test_how_a_program_ends(body, code, stderr):
  program = (
    'from absl import logging\nfrom moe import cli\nfrom moe.errors import UserError\n'
    f'def main(argv):\n  {body}\ncli.run(main)\n'
  )
  done = run('-c', program)
  assert (done.returncode, done.stderr) == (code, stderr)


def test_a_defect_keeps_its_traceback():
  done = run('-c', 'from moe import cli\ndef main(argv):\n  [][0]\ncli.run(main)\n')
  assert done.returncode == 1
  assert 'IndexError' in done.stderr


def test_a_reader_that_stops_early_sees_no_traceback():
  program = 'from moe import cli\ndef main(argv):\n  print("x\\n" * 1_000_000)\ncli.run(main)\n'
  with subprocess.Popen(
    [sys.executable, '-c', program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  ) as child:
    child.stdout.read(10)
    child.stdout.close()
    assert child.stderr.read() == b''
  assert child.returncode not in (0, -signal.SIGPIPE)


def test_help_is_no_error_and_shows_the_flags():
  done = run('-m', 'launch.describe', '--help')
  assert done.returncode == 0
  assert '--config:' in done.stdout
  assert '--format:' in done.stdout


def test_describe_all_has_every_variant():
  output = describe_json('--all')
  assert output.keys() == shipped.configs().keys()
  assert {'validation:deepseek_moe', 'scaling:deepseek_moe_145b', 'proxy:shared_4'} <= output.keys()
  promised = (
    'total_params',
    'active_params',
    'expert_params',
    'active_expert_params',
    'train_flops_per_sequence',
  )
  assert all(isinstance(numbers[key], int) for numbers in output.values() for key in promised)


def test_describe_one_is_the_same_object_and_follows_overrides():
  alone = describe_json(VALIDATION)
  assert alone.pop('name') == 'validation:deepseek_moe'
  # Only `--config` gives these two: they need jax.
  assert alone.pop('trained_params') == alone['total_params']
  assert alone.pop('optimizer_bytes') > 8 * alone['total_params']
  assert alone == describe_json('--all')['validation:deepseek_moe']
  longer = describe_json(VALIDATION, '--config.data.seq_len=4096')
  assert longer['total_params'] == alone['total_params']
  assert longer['train_flops_per_sequence'] > 2 * alone['train_flops_per_sequence']


def test_describe_text_is_aligned_and_has_units():
  lines = in_process.run('describe', '--all').stdout.splitlines()
  assert len({len(line) for line in lines}) == 1
  assert any('16.38B' in line and '75.90T' in line for line in lines)
  card = in_process.run('describe', '--config=experiments/scaling.py:deepseek_moe_16b').stdout
  assert '16.38B' in card
  assert '75.90T' in card


@pytest.mark.parametrize(
  ('number', 'text'),
  [(7, '7'), (2048, '2.048K'), (1_234_567, '1.235M'), (16.4e9, '16.40B'), (585.6e12, '585.6T')],
)
def test_quantity(number, text):
  assert accounting_tables.quantity(number) == text
