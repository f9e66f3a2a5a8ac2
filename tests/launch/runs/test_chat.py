"""A run tuned on conversations: trained from another's weights, resumed, evaluated, talked to."""

import io
import json
import shutil
import subprocess

import numpy as np
import pytest

from moe.config import from_stored
from moe.data import batches as data_batches
from moe.data.prepare import prepare
from moe.data.store import HELD_OUT
from moe.run import load_run
from tests import in_process
from tests.launch.runs import programs
from tests.moe.data.chat.helpers import as_row, conversation, write, write_chats


@pytest.fixture(scope='module')
def made(finished, tmp_path_factory):
  """(flags, workdir) of 12 steps, with checkpoints at 4, 8 and 12."""
  folder = tmp_path_factory.mktemp('tuned')
  flags = (
    programs.CONFIG,
    *('--config.data.format=chat', f'--config.data.sources={write_chats(folder / "chats")}'),
    *(f'--config.train.init_from={finished}', '--config.data.seq_len=64'),
    *('--config.data.holdout=0.2', '--config.optimizer.schedule=constant'),
    *('--config.train.num_steps=12', '--config.checkpoint.every_steps=4'),
    *('--config.checkpoint.keep_last=9', '--config.checkpoint.keep_best=0'),
  )
  in_process.check('train', *flags, f'--workdir={folder / "run"}')
  return flags, folder / 'run'


def opened(workdir):
  config = from_stored(json.loads((workdir / 'config.json').read_text()), 'config.json')
  tokenizer = load_run(workdir).tokenizer
  return config, prepare(config, workdir / 'data', is_main=False, tokenizer=tokenizer)


def test_it_starts_from_the_weights_and_the_tokenizer(made, finished):
  _, workdir = made
  first, theirs = load_run(workdir, 0), load_run(finished)
  np.testing.assert_array_equal(first.params['embedding'], theirs.params['embedding'])
  assert first.tokenizer.sha256 == theirs.tokenizer.sha256


def test_steps_say_how_many_conversations_they_saw(made):
  _, workdir = made
  config, prepared = opened(workdir)
  batches = data_batches.train_iterator(prepared, config)
  for line in programs.lines(workdir):
    batch = next(batches)
    assert line['examples'] == sum(len(set(row.tolist()) - {0}) for row in batch.segment_ids_BL)
    assert line['packing_efficiency'] == pytest.approx((batch.segment_ids_BL > 0).mean())
    assert line['loss_by_domain'].keys() <= {'a', 'b'}


def test_it_goes_on_bit_for_bit(made, tmp_path):
  flags, workdir = made
  run = shutil.copytree(workdir, tmp_path / 'run')
  for step in ('8', '12'):
    shutil.rmtree(run / 'checkpoints' / step)
  assert 'going on from step 4' in in_process.check('train', *flags, f'--workdir={run}')
  assert programs.losses(run) == programs.losses(workdir)


def alone(run, conversations):
  """Yields the nats of every reply token, from the logits of conversations that fit the context."""
  logits = run.logits([tokens_N[:-1].tolist() for tokens_N, _ in conversations])
  for (tokens_N, learnt_N), logits_LV in zip(conversations, logits, strict=True):
    logits_LV = logits_LV.astype(np.float64)
    nats_LV = np.log(np.exp(logits_LV).sum(axis=1, keepdims=True)) - logits_LV
    yield from (nats_LV[i - 1, tokens_N[i]] for i in np.flatnonzero(learnt_N))


def test_evaluation_is_of_the_replies(made):
  _, workdir = made
  run, (_, prepared) = load_run(workdir), opened(workdir)
  told = json.loads(in_process.check('evaluate', f'--workdir={workdir}', '--format=json'))
  documents = prepared.documents(HELD_OUT, 'b')
  losses = list(alone(run, list(map(documents.conversation, range(len(documents))))))
  assert told['domains']['b']['tokens'] == len(losses) > 0
  assert told['domains']['b']['loss'] == pytest.approx(np.mean(losses), rel=1e-5)
  last = programs.lines(workdir)[-1]['held_out_loss_by_domain']
  assert last['b'] == pytest.approx(np.mean(losses), rel=1e-5)


def test_other_conversations_are_scored_and_known_ones_told(made, tmp_path):
  _, workdir = made
  known = [as_row(conversation(f'a{n}')) for n in range(60)]
  other = [as_row(conversation(f'c{n}', turns=1)) for n in range(4)]
  sources = f'known={write(tmp_path / "known.jsonl", known)}'
  sources += f';other={write(tmp_path / "other.jsonl", other)}'
  done = in_process.run('evaluate', f'--workdir={workdir}', f'--sources={sources}', '--format=json')
  told = json.loads(done.stdout)
  trained = opened(workdir)[1].totals('train', 'a')['documents']
  assert told['trained_on'] == {'known': trained, 'other': 0}
  assert told['domains']['other']['loss'] > 0
  assert f'trained on {trained} of 60 given documents' in done.stderr


def test_talking_over_a_pipe(made):
  _, workdir = made
  command = programs.command('chat', f'--workdir={workdir}', '--max_new_tokens=8', '--seed=3')
  done = subprocess.run(
    command, cwd=programs.ROOT, input='the expert\n/reset\nthe expert\n', capture_output=True,
    text=True, timeout=300, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stderr.splitlines()[-1] == 'tiny, step 12, template deepseek'
  assert done.stdout.endswith('\n') and len(done.stdout) > 2


@pytest.mark.parametrize(
  'flags, typed, words',
  [
    (['--template=tokenizer'], '', 'data.chat_template=tokenizer: the tokenizer has no chat_temp'),
    (['--temperature=-1'], '', 'temperature=-1.0 must be at least 0'),
    (['--max_new_tokens=0'], '', 'max_new_tokens=0 must be at least 1'),
    (['--step=5'], '', 'no checkpoint of step 5'),
    ([], 'word ' * 90, "the question 'word word"),
    ([], '/what', 'there is no command /what'),
  ],
)
def test_bad_input_of_chat_is_one_line(made, monkeypatch, flags, typed, words):
  monkeypatch.setattr('sys.stdin', io.StringIO(f'{typed}\n'))
  done = in_process.run('chat', f'--workdir={made[1]}', *flags)
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1 and words in errors[0]


@pytest.mark.parametrize(
  'changed, words',
  [
    ('--config.data.chat_template=tokenizer', 'the tokenizer has no chat_template'),
    ('--config.data.sources=builtin', "'builtin' is text, and data.format=chat needs"),
    ('--config.data.reset_at_documents=False', 'data.reset_at_documents=False: conversations'),
    ('--config.data.seq_len=4', "data.seq_len=4 is too short for domain 'a'"),
    ('--config.data.format=jsonl', "config.data.format must be one of text | chat, not 'jsonl'"),
    ('BAD', 'bad.jsonl:2: nothing to learn: the conversation has no turn of the assistant'),
  ],
)
def test_bad_input_of_training_is_one_line(made, tmp_path, changed, words):
  if changed == 'BAD':
    rows = [{'prompt': 'a', 'response': 'b'}, {'messages': [{'role': 'user', 'content': 'a'}]}]
    changed = f'--config.data.sources=x={write(tmp_path / "bad.jsonl", rows)}'
  line = in_process.error_line('train', *made[0], changed, f'--workdir={tmp_path / "run"}')
  assert words in line
