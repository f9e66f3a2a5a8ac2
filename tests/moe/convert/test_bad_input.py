"""Bad checkpoints and folders give one line that names what is wrong,
and leave nothing half-done behind.
"""

import json
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest

from experiments.notebooks.released import DEEPSEEK, tensors, write
from moe.checkpoint import Checkpointer
from moe.convert import outputs, safetensors
from moe.convert.from_hf import from_hf
from moe.convert.to_hf import to_hf
from moe.errors import UserError
from moe.run import load_run, open_workdir
from tests import in_process
from tests.moe.convert.hf_checkpoint import LLAMA

SHARD = 'model-00001-of-00002.safetensors'
INDEX = 'model.safetensors.index.json'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return write(tmp_path_factory.mktemp('whole') / 'hf', DEEPSEEK, tensors(DEEPSEEK))


@pytest.fixture
def source(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'hf')


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
  folder = tmp_path_factory.mktemp('converted')
  from_hf(write(folder / 'hf', LLAMA, tensors(LLAMA)), folder / 'run')
  return folder / 'run'


def changed_index(change):
  def damage(folder):
    index = json.loads((folder / INDEX).read_text())
    change(index['weight_map'])
    (folder / INDEX).write_text(json.dumps(index))

  return damage


def changed_bytes(offset, value):
  def damage(folder):
    with open(folder / SHARD, 'r+b') as file:
      file.seek(offset)
      file.write(value)

  return damage


def truncated(folder):
  with open(folder / SHARD, 'r+b') as file:
    file.truncate((folder / SHARD).stat().st_size - 5)


def with_config(**changes):
  def damage(folder):
    (folder / 'config.json').write_text(json.dumps(DEEPSEEK | changes))

  return damage


def rewritten(change):
  """Rewrites the checkpoint with changed tensors, in one file without an index."""

  def damage(folder):
    shutil.rmtree(folder)
    weights = tensors(DEEPSEEK)
    change(weights)
    write(folder, DEEPSEEK, weights, shards=1)

  return damage


def renamed_type(folder):
  """Makes one tensor's type float8, which NumPy lacks. Only the type's name in the header changes,
  not the bytes.
  """
  rewritten(lambda weights: None)(folder)
  path = folder / 'model.safetensors'
  content = path.read_bytes()
  (length,) = struct.unpack('<Q', content[:8])
  header = json.loads(content[8 : 8 + length])
  header['model.norm.weight']['dtype'] = 'F8_E4M3'
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + content[8 + length :])


def given_twice_in_a_file(folder):
  rewritten(lambda weights: None)(folder)
  path = folder / 'model.safetensors'
  content = path.read_bytes()
  (length,) = struct.unpack('<Q', content[:8])
  text = content[8 : 8 + length].replace(b'model.layers.0.', b'model.layers.1.', 1)
  text = text.replace(
    b'"model.layers.0.mlp.up_proj.weight"', b'"model.layers.0.mlp.down_proj.weight"'
  )
  path.write_bytes(struct.pack('<Q', len(text)) + text + content[8 + length :])


def given_twice_in_two_files(folder):
  (folder / INDEX).unlink()
  shutil.copy(folder / SHARD, folder / 'model-00003-of-00003.safetensors')


NORM, GATE = 'model.norm.weight', 'model.layers.1.mlp.gate.weight'
CASES = {
  'no config.json': (lambda folder: (folder / 'config.json').unlink(), 'no config.json'),
  'no JSON': (lambda folder: (folder / 'config.json').write_text('{'), 'config.json is not JSON'),
  'another model': (with_config(model_type='mixtral'), "model_type='mixtral'"),
  'gates': (with_config(norm_topk_prob=True), 'norm_topk_prob=True'),
  'no type': (with_config(torch_dtype='float16'), '--dtype=float32'),
  'no files': (lambda folder: [p.unlink() for p in folder.glob('*safe*')], 'no *.safetensors'),
  'shard missing': (lambda folder: (folder / SHARD).unlink(), f'{SHARD} is missing'),
  'truncated': (truncated, f'{SHARD} is truncated'),
  'header cut': (changed_bytes(0, b'\xff' * 8), f'{SHARD} is damaged or truncated'),
  'flipped in the header': (changed_bytes(9, b'\xff'), f'{SHARD} is damaged'),
  'index is no index': (lambda folder: (folder / INDEX).write_text('{}'), "'weight_map'"),
  'index elsewhere': (changed_index(lambda m: m.update({NORM: '../x'})), "'weight_map'"),
  'index says more': (changed_index(lambda m: m.update(other=SHARD)), f'other is in {SHARD}'),
  'index says less': (changed_index(lambda m: m.pop(NORM)), f'does not list: {NORM}'),
  'index says another file': (
    changed_index(lambda m: m.update({NORM: next(f for f in m.values() if f != m[NORM])})),
    f'says that {NORM} is in',
  ),
  'missing': (rewritten(lambda w: w.pop(GATE)), f'lacks 1 tensors of its config.json: {GATE}'),
  'unexpected': (
    rewritten(lambda w: w.update({'model.layers.1.mlp.gate.bias': np.zeros(8, np.float32)})),
    'model.layers.1.mlp.gate.bias',
  ),
  'misshapen': (
    rewritten(lambda w: w.update({GATE: np.zeros((9, 32), np.float32)})),
    f'{GATE} has the shape [9, 32]; by config.json it is [8, 32]',
  ),
  'fewer experts': (with_config(n_routed_experts=7), 'does not account for'),
  'float8': (renamed_type, f'{NORM} is of type F8_E4M3'),
  'integers': (
    rewritten(lambda w: w.update({NORM: np.zeros(32, np.int8)})),
    f'{NORM} is of type I8',
  ),
  'twice in a file': (given_twice_in_a_file, 'is given twice'),
  'twice in two files': (given_twice_in_two_files, 'is given twice'),
  'several types': (
    rewritten(lambda w: w.update({GATE: w[GATE].astype(ml_dtypes.bfloat16)})),
    'choose one by --dtype',
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_a_bad_checkpoint_is_one_line_and_leaves_nothing(source, tmp_path, name):
  damage, words = CASES[name]
  damage(source)
  with pytest.raises(UserError) as error:
    from_hf(source, tmp_path / 'run')
  assert words in str(error.value) and '\n' not in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


def test_a_file_that_ends_while_it_is_read_leaves_nothing(source, tmp_path, monkeypatch):
  read = safetensors.Reader.read
  monkeypatch.setattr(safetensors.Reader, 'read', lambda *args: (truncated(source), read(*args)))
  with pytest.raises(UserError, match='is truncated'):
    from_hf(source, tmp_path / 'run')
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
  source, converted, tmp_path, monkeypatch
):
  monkeypatch.setattr(outputs.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(9, 9, 0))
  for convert in (
    lambda: from_hf(source, tmp_path / 'run'),
    lambda: to_hf(converted, tmp_path / 'out'),
  ):
    with pytest.raises(UserError, match='not enough room in'):
      convert()
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


def test_nothing_is_written_over(source, converted, tmp_path):
  (tmp_path / 'run').mkdir()
  with pytest.raises(UserError, match=f'--workdir={tmp_path}/run exists'):
    from_hf(source, tmp_path / 'run')
  with pytest.raises(UserError, match=f'--out={tmp_path}/run exists'):
    to_hf(converted, tmp_path / 'run')
  assert not list((tmp_path / 'run').iterdir())


def test_what_a_kill_has_left_is_never_a_run_and_goes(source, tmp_path):
  (tmp_path / '.run.partial/checkpoints/0').mkdir(parents=True)
  from_hf(source, tmp_path / 'run')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['hf', 'run']
  assert load_run(tmp_path / 'run').step == 0


def test_a_flipped_byte_of_a_checkpoint_is_not_written_out(converted, tmp_path):
  workdir = shutil.copytree(converted, tmp_path / 'run')
  data = max((workdir / 'checkpoints/0/params').rglob('d/*'), key=lambda path: path.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  with pytest.raises(UserError, match='is damaged: the bytes of'):
    to_hf(workdir, tmp_path / 'out')
  assert [path.name for path in tmp_path.iterdir()] == ['run']
  with pytest.raises(UserError, match='can be read'):
    load_run(workdir)


def test_training_does_not_go_on_with_converted_weights(converted):
  before = (converted / 'config.json').read_bytes()
  run = load_run(converted)
  with pytest.raises(UserError, match='holds weights only'):
    open_workdir(run.config, converted)
  checkpointer = Checkpointer(
    converted, run.config, type('T', (), {'to_bytes': lambda self: b''})()
  )
  with pytest.raises(UserError, match='holds weights only'):
    checkpointer.restore_newest()
  checkpointer.close()
  assert (converted / 'config.json').read_bytes() == before
  assert load_run(converted).step == 0


@pytest.mark.parametrize(
  'flags, words',
  [
    ([], '--from=HF_DIR'),
    (['--from=HF', '--to=hf'], '--from=HF_DIR'),
    (['--from=/nowhere'], 'no config.json'),
    (['--from=HF', '--out=DIR'], '--out goes with --to'),
    (['--to=hf'], '--out=DIR'),
    (['--to=hf', '--out=/there/is/out'], 'no checkpoint in'),
    (['--to=onnx'], '--to'),
    (['--from=HF', '--dtype=int8'], '--dtype'),
  ],
)
def test_flags_that_do_not_go_together_are_one_line(tmp_path, flags, words):
  assert words in in_process.error_line('convert', f'--workdir={tmp_path}/run', *flags)
  assert not list(tmp_path.iterdir())


def test_the_program_converts_and_says_so(source, tmp_path):
  told = in_process.check('convert', f'--from={source}', f'--workdir={tmp_path}/run')
  assert 'token ids work' in told and '80 tensors' in told
  told = in_process.check(
    'convert', '--to=hf', f'--workdir={tmp_path}/run', f'--out={tmp_path}/out'
  )
  assert '80 tensors of step 0 as deepseek' in told
  line = in_process.error_line('generate', f'--workdir={tmp_path}/run', '--prompt=x')
  assert 'has no tokenizer' in line
  line = in_process.error_line('evaluate', f'--workdir={tmp_path}/run')
  assert 'has no tokenizer' in line
