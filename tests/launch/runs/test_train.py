"""What a run writes, and how it answers bad input."""

import json
import struct

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from moe.errors import UserError
from moe.run import open_workdir
from moe.train import train
from tests import in_process
from tests.launch.runs import programs
from tests.launch.runs.programs import CONFIG
from tests.small import one_device


def test_metrics_of_every_logged_step(finished):
  logged = programs.lines(finished)
  assert [line['step'] for line in logged] == list(range(1, 41))
  for line in logged:
    assert {
      *(
        'loss',
        'objective',
        'loss/expert_balance',
        'loss/device_balance',
        'loss/router_z',
        'gradient_norm',
        'learning_rate',
      ),
      *('tokens_per_second', 'model_flops_per_second', 'bad_steps', 'tokens'),
    } <= line.keys()
    for name in ('max_vio_N', 'router_entropy_N', 'dead_experts_N'):
      assert len(line[name]) == 2  # MoE layers
    assert 'force_balanced_routing' not in line
    # 0 is balance; at E/K − 1 = 1, one expert takes every token.
    assert all(0 <= value <= 1 for value in line['max_vio_N'])
    assert all(0 < value <= np.log(4) + 1e-6 for value in line['router_entropy_N'])
    assert line['objective'] >= line['loss']
    by_domain = line['loss_by_domain']
    assert by_domain.keys() <= {'prose', 'code'}
    assert min(by_domain.values()) - 1e-5 <= line['loss'] <= max(by_domain.values()) + 1e-5
  assert logged[-1]['loss'] < logged[0]['loss'] - 1
  # Every checkpoint is scored, to find the best.
  assert [line['step'] for line in logged if 'held_out_loss' in line] == [10, 20, 30, 40]


def test_the_last_logged_loss_is_that_of_the_data(finished):
  """The final held-out loss of the log is what launch.evaluate finds,
  since so small a corpus is scored whole.
  """
  scores = json.loads(in_process.check('evaluate', f'--workdir={finished}', '--format=json'))
  last = programs.lines(finished)[-1]
  assert scores['step'] == 40
  assert scores['domains']['total']['loss'] == pytest.approx(last['held_out_loss'], rel=1e-6)


def test_files_of_a_run(finished):
  assert {'config.json', 'metrics.jsonl', 'tokenizer.model', 'tensorboard', 'checkpoints'} <= {
    path.name for path in finished.iterdir()
  }
  assert json.loads((finished / 'config.json').read_text())['name'] == 'tiny'


def _events(folder):
  """Yields the summary values of TensorBoard's files. A record is a length, its CRC, an Event and
  its CRC.
  """
  for path in folder.iterdir():
    content, at = path.read_bytes(), 0
    while at < len(content):
      (length,) = struct.unpack_from('<Q', content, at)
      yield from Event.FromString(content[at + 12 : at + 12 + length]).summary.value
      at += 16 + length


def test_tensorboard_has_scalars_and_a_heatmap(finished):
  values = list(_events(finished / 'tensorboard'))
  tags = {value.tag for value in values}
  assert {
    'loss',
    'max_vio_N/layer_0',
    'max_vio_N/layer_1',
    'held_out_loss_by_domain/prose',
    'loss_by_domain/prose',
    'tokens_per_second',
  } <= tags
  images = [value.image for value in values if value.tag == 'expert_load']
  assert len(images) == 2 and images[0].width > 50  # steps 20 and 40


def test_steps_that_are_not_logged_do_not_wait_for_the_device(data_flags, tmp_path, monkeypatch):
  fetched = []
  device_get = jax.device_get
  monkeypatch.setattr(jax, 'device_get', lambda tree: fetched.append(tree) or device_get(tree))
  off = {'evaluation.every_steps': 0, 'checkpoint.keep_best': 0, 'checkpoint.every_steps': 100}
  often = {'train.log_every': 7, 'train.heatmap_every': 10, 'train.num_steps': 15}
  quiet = programs.config(data_flags, **off, **often)
  with one_device():
    train(quiet, tmp_path)
  of_steps = [tree for tree in fetched if isinstance(tree, dict) and 'gradient_norm' in tree]
  logged = programs.lines(tmp_path)
  assert [line['step'] for line in logged] == [7, 10, 14, 15]
  assert [line['step'] for line in logged if 'expert_load_NE' in line] == [10, 15]
  assert len(of_steps) == 4


def test_forced_balance_is_said_at_the_start_and_in_every_line(data_flags, tmp_path, capsys):
  overrides = {
    'ops.force_balanced_routing': True,
    'train.num_steps': 2,
    'train.log_every': 1,
    'evaluation.every_steps': 0,
    'checkpoint.keep_best': 0,
  }
  with one_device():
    train(programs.config(data_flags, **overrides), tmp_path)
  first, *steps = (
    line for line in capsys.readouterr().out.splitlines() if 'parameters' in line or 'step ' in line
  )
  assert 'ops.force_balanced_routing: experts are dealt out, not chosen' in first
  assert [line.count('| routing forced |') for line in steps if line.startswith('step ')] == [1, 1]
  logged = programs.lines(tmp_path)
  assert [line['force_balanced_routing'] for line in logged] == [True, True]
  for line in logged:
    # Loads differ by a token at most; their mean is two choices of every token over four experts.
    assert max(line['max_vio_N']) <= 4 / (2 * line['tokens']) + 1e-6
    assert line['dead_experts_N'] == [0, 0]


def test_a_run_that_diverges_stops_and_keeps_its_checkpoint(data_flags, tmp_path):
  flags = (CONFIG, *data_flags, f'--workdir={tmp_path}', '--config.optimizer.warmup_steps=0')
  huge = (
    '--config.optimizer.peak_lr=1000',
    '--config.optimizer.weight_decay=1000',
    '--config.optimizer.clip_norm=0',
    '--config.train.max_bad_steps=3',
  )
  line = programs.error_line(
    'train', *flags, *huge, '--config.checkpoint.every_steps=2', '--config.train.log_every=4'
  )
  assert 'train.max_bad_steps=3' in line and 'the last checkpoint, step 4, is intact' in line
  logged = programs.lines(tmp_path)
  assert logged[-1]['bad_steps'] > 3 and None in (logged[-1]['loss'], logged[-1]['gradient_norm'])
  assert (tmp_path / 'checkpoints' / '4').is_dir()


def test_a_workdir_of_another_config_names_the_keys(data_flags, finished):
  changed = (
    '--config.model.d_model=64',
    '--config.optimizer.peak_lr=0.02',
    '--config.train.log_every=5',
  )
  line = in_process.error_line('train', CONFIG, *data_flags, f'--workdir={finished}', *changed)
  assert (
    'model.d_model (32 there, 64 now)' in line
    and 'optimizer.peak_lr (0.01 there, 0.02 now)' in line
  )
  assert 'log_every' not in line  # may change


def test_another_machine_may_need_other_microbatches_and_recompute_more(data_flags, tmp_path):
  open_workdir(programs.config(data_flags), tmp_path)
  (tmp_path / 'metrics.jsonl').write_text('')
  other = {
    'train.microbatches': 2,
    'model.remat': 'full',
    'train.loss_chunk': 8,
    'ops.implementation': 'xla',
  }
  open_workdir(programs.config(data_flags, **other, **{'mesh.data': 1, 'mesh.fsdp': -1}), tmp_path)
  with pytest.raises(UserError, match=r'data\.batch_size \(4 there, 8 now\)'):
    open_workdir(programs.config(data_flags, **{'data.batch_size': 8}), tmp_path)


def test_a_damaged_config_json_is_named(data_flags, tmp_path):
  (tmp_path / 'config.json').write_text('{"name": ')
  (tmp_path / 'metrics.jsonl').write_text('')
  with pytest.raises(UserError, match='json is not JSON'):
    open_workdir(programs.config(data_flags), tmp_path)


def test_a_config_may_be_mended_until_a_step_is_logged(data_flags, tmp_path):
  open_workdir(programs.config(data_flags, **{'data.sources': 'x=/nowhere/*'}), tmp_path)
  open_workdir(programs.config(data_flags), tmp_path)
  (tmp_path / 'metrics.jsonl').write_text('')
  with pytest.raises(UserError, match=r'data\.sources'):
    open_workdir(programs.config(data_flags, **{'data.sources': 'x=/nowhere/*'}), tmp_path)


@pytest.mark.parametrize(
  'flags, words',
  [
    (
      ('--config.trian.num_steps=3',),
      "unknown config key 'trian.num_steps': the nearest valid key is 'train.num_steps'",
    ),
    (('--config.model.d_model=wide',), 'config.model.d_model must be an integer'),
    (
      ('--config.moe.experts_per_token=5',),
      'moe.experts_per_token=5 is more than moe.num_experts=4',
    ),
    (
      ('--config.model.num_heads=3', '--config.model.num_kv_heads=2'),
      'model.num_heads=3 is not divisible by model.num_kv_heads=2',
    ),
    (('--config.moe.device_groups=3',), 'moe.device_groups=3 does not divide moe.num_experts=4'),
    (('--config.data.sources=a=/nowhere/*.txt',), '/nowhere/*.txt'),
    (
      ('--config.data.tokenizer=/nowhere/x.model', '--config.data.sources=builtin'),
      '/nowhere/x.model',
    ),
  ],
)
def test_bad_input_is_one_line_and_writes_nothing(flags, words, tmp_path):
  assert words in in_process.error_line('train', CONFIG, *flags, f'--workdir={tmp_path / "run"}')
  assert (
    not (tmp_path / 'run' / 'checkpoints').exists() and not (tmp_path / 'run' / 'data').exists()
  )


def test_a_workdir_that_is_a_file_is_named(tmp_path):
  (tmp_path / 'taken').write_text('')
  assert f'{tmp_path / "taken"}: File exists' in in_process.error_line(
    'train', CONFIG, f'--workdir={tmp_path / "taken"}'
  )


def test_microbatches_and_remat_do_not_change_a_run(data_flags, finished, tmp_path):
  for number, overrides in enumerate(
    ({'train.microbatches': 2}, {'model.remat': 'full'}, {'train.loss_chunk': 48})
  ):
    with one_device():
      train(
        programs.config(data_flags, **overrides, **{'train.num_steps': 40}), tmp_path / str(number)
      )
    compared = zip(programs.lines(tmp_path / str(number)), programs.lines(finished), strict=True)
    assert all(a['loss'] == pytest.approx(b['loss'], rel=1e-4) for a, b in compared), overrides


def test_kernels_of_another_platform_are_refused_before_anything_is_written(tmp_path):
  workdir = tmp_path / 'run'
  line = in_process.error_line(
    'train', CONFIG, f'--workdir={workdir}', '--config.ops.implementation=pallas_tpu'
  )
  assert 'ops.implementation=pallas_tpu needs a tpu, this is a cpu' in line
  assert not workdir.exists()
