"""A run's folder: its name, its files, and the config, tokenizer and text it must go on with."""

import contextlib
import functools
import json
import os
import shutil
import types
from pathlib import Path

import jax
import pytest

from moe.checkpoint import Checkpointer
from moe.errors import UserError
from moe.run import data_directory, folder, load_run, open_workdir
from moe.storage import must_stay
from moe.storage.reading import available_steps
from moe.train_step import init_state
from tests.small import small_config


def tokenizer_of(content: bytes):
  return types.SimpleNamespace(to_bytes=lambda: content, tokenizer_config=b'')


TOKENIZER = tokenizer_of(b'a tokenizer')
CONFIG = small_config(**{'model.num_layers': 1, 'data.sources': 'a@2=/there/*.txt;b=/there/b.txt'})
TEXT = {
  'order': ['a', 'b'],
  'splits': {
    'train': {'a': {'documents': 3, 'lengths': 'x'}, 'b': {'documents': 4, 'lengths': 'y'}},
    'held_out': {'a': {'documents': 1, 'text_sha256': 'z'}},
  },
}


@functools.cache
def state():
  return jax.jit(lambda: init_state(CONFIG))()


def save(workdir, step=1, config=CONFIG, tokenizer=TOKENIZER, text=TEXT):
  with contextlib.closing(Checkpointer(workdir, config, tokenizer, text)) as checkpointer:
    checkpointer.save(step, state(), {}, None)
    checkpointer.wait(step)


def restore(workdir, config=CONFIG, tokenizer=TOKENIZER, text=TEXT):
  with contextlib.closing(Checkpointer(workdir, config, tokenizer, text)) as checkpointer:
    return checkpointer.restore_newest()


def changed(key, value, config=CONFIG):
  """A config that differs in one dotted key."""
  return small_config(**{'model.num_layers': 1, 'data.sources': config.data.sources} | {key: value})


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir with a checkpoint, to be copied."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  open_workdir(CONFIG, workdir)
  save(workdir)
  (workdir / 'metrics.jsonl').write_text('{"step": 1, "loss": 2.0}\n')
  return workdir


@pytest.fixture
def workdir(run, tmp_path):
  return shutil.copytree(run, tmp_path / 'run')


NAMES = [
  *('a b', ' lead', 'trail ', "it's", 'say "x"', '100%', 'a%20b', 'ünï☃', '#1', 'a{b,c}', 'a:b'),
  *('-a', 'a;b', 'a&b=c', '$HOME', '`b`', 'a,b', 'a@b', 'a!b', 'a|b', 'a<b>', 'a+b', 'a(b)'),
  *('.hidden', 'a~'),
]  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_a_run_may_have_any_name_that_is_no_pattern(run, tmp_path, name):
  workdir = tmp_path / name
  shutil.copytree(run, workdir)
  open_workdir(CONFIG, workdir)
  assert available_steps(workdir) == [1]
  assert folder(f'{workdir}/') == folder(workdir)


@pytest.mark.parametrize('name', ['a b', "it's 100% ünï☃", 'a{b}#$HOME'])
def test_a_run_of_such_a_name_saves_and_restores(tmp_path, name):
  save(tmp_path / name)
  assert restore(tmp_path / name).step == 1


@pytest.mark.parametrize(
  'name', ['a[1]', 'a]', 'a*b', 'a?', 'a\\b', 'a\nb', 'a\tb', os.fsdecode(b'a\xff'), '', ' ']
)
def test_a_name_that_checkpoints_cannot_be_under_is_refused_before_anything_is_written(
  tmp_path, monkeypatch, name
):
  monkeypatch.chdir(tmp_path)
  for use in (lambda: open_workdir(CONFIG, name), lambda: load_run(name)):
    with pytest.raises(UserError, match='--workdir') as error:
      use()
    assert str(error.value).isprintable()
  assert not list(tmp_path.iterdir())


def test_a_run_in_a_folder_with_brackets_is_reached_by_a_link(run, tmp_path):
  shutil.copytree(run, tmp_path / 'a[1]')
  (tmp_path / 'link').symlink_to(tmp_path / 'a[1]')
  open_workdir(CONFIG, tmp_path / 'link')
  assert restore(Path(folder(tmp_path / 'link'))).step == 1


def test_steps_back_are_taken_as_the_system_takes_them(tmp_path, monkeypatch):
  (tmp_path / 'real/inner').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'real/inner')
  assert Path(folder(tmp_path / 'link/../run')) == tmp_path / 'real/run'
  monkeypatch.setenv('HOME', str(tmp_path))
  assert Path(folder('~/run')) == tmp_path / 'run'
  monkeypatch.chdir(tmp_path)
  assert Path(data_directory(CONFIG, 'run/')) == tmp_path / 'run/data'


@pytest.mark.parametrize(
  'name', ['config.json', 'metrics.jsonl', 'tokenizer.model', 'tokenizer.json', '.lock']
)
def test_a_folder_where_a_file_should_be_is_named(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(UserError, match=f'{tmp_path}/{name} must be a file'):
    open_workdir(CONFIG, tmp_path)


@pytest.mark.parametrize('name', ['checkpoints', 'tensorboard', 'unreadable'])
def test_a_file_or_a_broken_link_where_a_folder_should_be_is_named(tmp_path, name):
  (tmp_path / name).write_text('')
  with pytest.raises(UserError, match=f'{tmp_path}/{name} must be a folder'):
    open_workdir(CONFIG, tmp_path)
  (tmp_path / name).unlink()
  (tmp_path / name).symlink_to('/nowhere')
  with pytest.raises(UserError, match=f'{tmp_path}/{name} must be a folder'):
    open_workdir(CONFIG, tmp_path)


OTHER_RATE = changed('optimizer.peak_lr', 0.5)
RATE = r'optimizer\.peak_lr \(0\.00108 there, 0\.5 now\)'


@pytest.mark.parametrize(
  'deleted', [[], ['config.json'], ['metrics.jsonl'], ['config.json', 'metrics.jsonl']]
)
def test_other_values_are_refused_whatever_file_was_deleted(workdir, deleted):
  for name in deleted:
    (workdir / name).unlink()
  with pytest.raises(UserError, match=RATE):
    open_workdir(OTHER_RATE, workdir)
  assert (workdir / 'config.json').exists() == ('config.json' not in deleted)
  open_workdir(CONFIG, workdir)


def test_other_values_are_refused_by_the_checkpoint_itself(workdir):
  with pytest.raises(UserError, match=RATE):
    restore(workdir, OTHER_RATE)
  with pytest.raises(UserError, match=r'model\.d_model'):
    restore(workdir, changed('model.d_model', 32))
  assert available_steps(workdir) == [1]


@pytest.mark.parametrize(
  'content', ['[]', '{"name": ', '', '\0\0', '3', '{"model": 3}', '{"x": 1}']
)
def test_a_damaged_config_json_is_one_line(workdir, content):
  (workdir / 'config.json').write_text(content)
  with pytest.raises(UserError, match=r'config\.json') as error:
    open_workdir(CONFIG, workdir)
  assert '\n' not in str(error.value)
  (workdir / 'config.json').unlink()  # as the message advises
  open_workdir(CONFIG, workdir)


def _text(*path_and_value):
  *path, last, value = path_and_value
  text = json.loads(json.dumps(TEXT))
  place = text
  for name in path:
    place = place[name]
  place[last] = value
  return text


@pytest.mark.parametrize(
  'other, words',
  [
    ({'tokenizer': tokenizer_of(b'b tokenizer')}, 'another tokenizer'),
    ({'text': _text('splits', 'train', 'a', 'documents', 5)}, "train documents of domain 'a': 3"),
    ({'text': _text('splits', 'train', 'b', 'lengths', 'w')}, "train lengths of domain 'b'"),
    ({'text': _text('splits', 'held_out', 'a', 'text_sha256', 'w')}, 'held_out text_sha256'),
    ({'text': _text('splits', 'held_out', {})}, 'held_out has the domains'),
    ({'text': _text('order', ['b', 'a'])}, 'its domains are a, b there, b, a now'),
    ({'config': changed('data.sources', 'a@3=/there/*.txt;b=/there/b.txt')}, r'data\.sources'),
    ({'config': changed('data.sources', 'c@2=/there/*.txt;b=/there/b.txt')}, r'data\.sources'),
  ],
)
def test_another_tokenizer_or_text_is_refused_by_name_and_the_checkpoint_stays(
  workdir, other, words
):
  with pytest.raises(UserError, match=words) as error:
    restore(workdir, **other)
  assert 'checkpoint step 1' in str(error.value) and '\n' not in str(error.value)
  assert available_steps(workdir) == [1]


@pytest.mark.parametrize(
  'key, value',
  [
    ('data.sources', 'a@2=/moved/*.txt;b=/moved/b.txt'),
    ('data.tokenizer', '/moved/tokenizer.model'),
    ('data.validation_sources', 'a=/moved/held-out.txt'),
    ('data.dir', '/moved/data'),
  ],
)
def test_the_same_text_may_have_moved(workdir, key, value):
  moved = changed(key, value)
  open_workdir(moved, workdir)
  assert restore(workdir, moved).step == 1


def test_of_text_what_only_one_version_knows_is_not_compared():
  more = _text('splits', 'train', 'a', {'documents': 3, 'lengths': 'x', 'checksums': 'new'})
  assert must_stay.text_changes(TEXT, more) == must_stay.text_changes(more, TEXT) == ''


@pytest.mark.parametrize('item, key', [('config', 'experts_per_token'), ('text', 'documents')])
def test_a_changed_digit_in_a_small_item_is_noticed(workdir, item, key):
  path = workdir / 'checkpoints/1' / item / 'metadata'
  content = path.read_text()
  at = content.index(':', content.index(key)) + 1
  at += len(content[at:]) - len(content[at:].lstrip())
  path.write_text(f'{content[:at]}{int(content[at]) ^ 1}{content[at + 1 :]}')
  with pytest.raises(UserError, match='can be read'):
    restore(workdir)
  with pytest.raises(UserError, match='can be read'):
    load_run(workdir)


def test_a_tokenizer_of_other_bytes_is_noticed(run, tmp_path):
  save(tmp_path / 'other', tokenizer=tokenizer_of(b'b tokenizer'))
  workdir = shutil.copytree(run, tmp_path / 'run')
  shutil.rmtree(workdir / 'checkpoints/1/tokenizer')
  shutil.copytree(tmp_path / 'other/checkpoints/1/tokenizer', workdir / 'checkpoints/1/tokenizer')
  with pytest.raises(UserError, match='can be read'):
    restore(workdir)


def test_what_a_kill_has_left_over_is_deleted_at_the_next_start(tmp_path):
  config = changed('checkpoint.keep_last', 3)
  with contextlib.closing(Checkpointer(tmp_path, config, TOKENIZER)) as checkpointer:
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0)):
      checkpointer.save(step, state(), {}, loss)
      checkpointer.wait(step)
  half = tmp_path / 'checkpoints/4.orbax-checkpoint-tmp'
  half.mkdir()
  assert available_steps(tmp_path) == [1, 2, 3]
  with contextlib.closing(
    Checkpointer(tmp_path, changed('checkpoint.keep_last', 1), TOKENIZER)
  ) as checkpointer:
    assert checkpointer.restore_newest().step == 3
  assert available_steps(tmp_path) == [2, 3] and not half.exists()


def test_the_best_checkpoint_stays_over_restarts(tmp_path):
  config = changed('checkpoint.keep_last', 1)
  for part in [[(1, 4.0), (2, 1.0)], [(3, float('nan')), (4, None)], [(5, 3.0)]]:
    with contextlib.closing(Checkpointer(tmp_path, config, TOKENIZER)) as checkpointer:
      for step, loss in part:
        checkpointer.save(step, state(), {}, loss)
        checkpointer.wait(step)
  assert available_steps(tmp_path) == [2, 5]
