"""launch.evaluate, launch.generate and load_run on a trained run."""

import json
import math
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyarrow import parquet

from moe.data.prepare import prepare
from moe.data.store import HELD_OUT, TRAIN
from moe.evaluate import compressed_bits_per_byte
from moe.generate import Sampling, generate
from moe.run import data_directory, load_run
from tests import in_process
from tests.launch.runs import programs


@pytest.fixture(scope='module')
def run(finished):
  return load_run(finished)


@pytest.fixture(scope='module')
def scores(finished):
  return json.loads(in_process.check('evaluate', f'--workdir={finished}', '--format=json'))


@pytest.fixture(scope='module')
def logits_of(run):
  """(tokens, positions, segments) (1, L) → float64 logits (L, V), all at once."""

  def logits(tokens, positions, segments):
    hidden, _, _ = run.model.apply({'params': run.params}, tokens, positions, segments)
    return run.model.apply({'params': run.params}, hidden, method='logits')

  compiled = jax.jit(logits)
  return lambda *batch: np.asarray(compiled(*batch), np.float64)[0]


def _losses_alone(run, logits_of, ids):
  """Loss of every token of one document on its own, in windows as evaluation cuts them."""
  length, context = (
    run.config.data.seq_len,
    int(run.config.evaluation.context * run.config.data.seq_len),
  )
  stream = [run.tokenizer.bos_id, *ids, run.tokenizer.eos_id]
  losses = []
  while len(losses) < len(stream) - 1:
    begin = max(0, len(losses) - context) if losses else 0
    inputs = np.array([stream[:-1][begin : begin + length]])
    padded = np.pad(inputs, ((0, 0), (0, length - inputs.shape[1])))
    segments = (np.arange(length) < inputs.shape[1])[None].astype(np.int32)
    logits = logits_of(padded, np.arange(length)[None], segments)
    scored = range(len(losses) - begin, inputs.shape[1])
    losses += [
      math.log(np.exp(logits[at]).sum()) - logits[at, stream[begin + at + 1]] for at in scored
    ]
  return losses


def test_evaluate_scores_every_token_of_every_document_once(finished, run, logits_of, scores):
  data = prepare(run.config, data_directory(run.config, finished))
  for domain in ('prose', 'code'):
    documents = data.documents(HELD_OUT, domain)
    losses = [
      loss
      for number in range(len(documents))
      for loss in _losses_alone(run, logits_of, documents.document(number))
    ]
    text = data.held_out_text(domain)
    row = scores['domains'][domain]
    assert row['tokens'] == len(losses) and row['bytes'] == len(text)
    assert row['loss'] == pytest.approx(np.mean(losses), rel=1e-5)
    assert row['bits_per_byte'] == pytest.approx(sum(losses) / math.log(2) / len(text), rel=1e-5)
    assert row['gzip -9'] == compressed_bits_per_byte(text)['gzip -9'] > 0


def test_total_is_token_weighted(scores):
  rows = scores['domains']
  parts = [rows['prose'], rows['code']]
  assert rows['total']['tokens'] == sum(row['tokens'] for row in parts)
  mean = sum(row['loss'] * row['tokens'] for row in parts) / rows['total']['tokens']
  assert rows['total']['loss'] == pytest.approx(mean, rel=1e-9)


def test_evaluate_text_table(finished):
  output = programs.check('evaluate', f'--workdir={finished}', '--step=30')
  assert 'step 30' in output and 'bits/byte' in output and 'total' in output


@pytest.fixture(scope='module')
def other_text(tmp_path_factory):
  """(documents, sources): text in two domains, one of them named as the row of all, `total`."""
  folder = tmp_path_factory.mktemp('other')
  documents = {
    'new': ['the gate of an expert: 中文\n' * 9, 'one'],
    'total': ['x = x + 1\n' * 30],
  }
  for domain, texts in documents.items():
    for number, text in enumerate(texts):
      (folder / f'{domain}-{number}.txt').write_text(text)
  return documents, ';'.join(f'{domain}={folder}/{domain}-*.txt' for domain in documents)


def test_evaluate_scores_other_text_whole(finished, run, logits_of, other_text):
  documents, sources = other_text
  flags = (f'--workdir={finished}', f'--sources={sources}', '--format=json')
  told = json.loads(in_process.check('evaluate', *flags))
  assert list(told['domains']) == ['new', 'total', '(total)']
  assert told['total'] == told['domains']['(total)']
  assert told['trained_on'] == {'new': 0, 'total': 0}
  sums = []
  for domain, texts in documents.items():
    row, size = told['domains'][domain], sum(len(text.encode()) for text in texts)
    ids_of = map(run.tokenizer.encode, texts)
    losses = [loss for ids in ids_of for loss in _losses_alone(run, logits_of, ids)]
    assert (row['tokens'], row['bytes']) == (len(losses), size)
    assert row['loss'] == pytest.approx(np.mean(losses), rel=1e-5)
    assert row['bits_per_byte'] == pytest.approx(sum(losses) / math.log(2) / size, rel=1e-5)
    assert row['gzip -9'] == compressed_bits_per_byte(''.join(texts).encode())['gzip -9']
    sums += losses
  assert told['total']['loss'] == pytest.approx(np.mean(sums), rel=1e-5)


def test_evaluate_tells_which_text_was_trained_on(finished, run, corpus):
  """Of the run's own corpus, that is all that was not held out."""
  done = in_process.run('evaluate', f'--workdir={finished}', f'--sources={corpus}', '--format=json')
  data = prepare(run.config, data_directory(run.config, finished))
  trained = {domain: len(data.documents(TRAIN, domain)) for domain in data.domains}
  assert json.loads(done.stdout)['trained_on'] == trained
  for domain, count in trained.items():
    words = f'trained on {count} of 40 given documents of domain {domain!r}'
    assert done.stderr.count(words) == 1


def test_other_text_needs_no_data_of_the_run(finished, other_text, tmp_path, monkeypatch):
  _, sources = other_text
  flags = ('evaluate', f'--workdir={finished}', f'--sources={sources}')
  monkeypatch.setenv('DATA', f'{tmp_path}/gone')
  done = in_process.run(*flags)
  why = f'there is no prepared data in {tmp_path}/gone'
  assert done.stderr.splitlines()[-1].endswith(f'is not known: {why}')
  assert done.stdout.splitlines()[1].startswith('text  ')
  assert json.loads(in_process.check(*flags, '--format=json'))['trained_on'] is None


def test_data_of_the_environment_is_what_is_scored(finished, run, scores, tmp_path, monkeypatch):
  shutil.copytree(data_directory(run.config, finished), tmp_path / 'data')
  monkeypatch.setenv('DATA', f'{tmp_path}/data')
  flags = ('evaluate', f'--workdir={finished}')
  assert json.loads(in_process.check(*flags, '--format=json')) == scores
  monkeypatch.setenv('DATA', f'{tmp_path}/none')
  assert f'there is no prepared data in {tmp_path}/none' in in_process.error_line(*flags)


def test_other_text_that_cannot_be_read_is_one_line(finished, tmp_path):
  (tmp_path / 'x.txt').write_bytes(b'one\ntwo \xff')
  for files, words in ((f'{tmp_path}/*.md', 'no file matches'), (f'{tmp_path}/*', 'x.txt:2: not')):
    flags = ('evaluate', f'--workdir={finished}', f'--sources=x={files}')
    assert words in in_process.error_line(*flags)


def test_generate_is_seeded_and_batched(finished):
  flags = (
    f'--workdir={finished}',
    '--prompt=the expert',
    '--prompt=one',
    '--max_new_tokens=8',
    '--format=json',
  )
  first, again, other = (
    json.loads(check('generate', *flags, f'--seed={seed}', '--temperature=1'))
    for seed, check in ((1, programs.check), (1, in_process.check), (2, in_process.check))
  )
  assert first == again != other
  assert [c['prompt'] for c in first] == ['the expert', 'one'] and all(
    len(c['tokens']) <= 8 for c in first
  )


def test_generate_on_a_mesh_says_the_same(finished):
  flags = ('generate', f'--workdir={finished}', '--prompt=the expert', '--temperature=0')
  flags += ('--max_new_tokens=8', '--format=json')
  devices = {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
  spread = programs.check(*flags, '--mesh=tensor=2', environment=devices)
  assert json.loads(spread) == json.loads(in_process.check(*flags, '--dtype=float32'))
  assert 'does not fit 1 device' in in_process.error_line(*flags, '--mesh=tensor=2')


def test_prompts_of_a_file_in_a_small_batch(finished, tmp_path):
  """Each line is a prompt, after those of the command line. Its completion is the same in another
  batch, and ends at a stop string.
  """
  (tmp_path / 'lines.txt').write_text('one\ntwo words\n\nthree')
  (tmp_path / 'rows.jsonl').write_text('{"prompt": "two\\nlines"}\n{"prompt": "three"}\n')
  flags = f'--workdir={finished}', '--max_new_tokens=8', '--temperature=1', '--format=json'

  def said(*more):
    return json.loads(in_process.check('generate', *flags, *more))

  lines = said(f'--prompts={tmp_path}/lines.txt', '--batch=2')
  assert [c['prompt'] for c in lines] == ['one', 'two words', 'three']
  assert lines == said('--prompt=one', '--prompt=two words', '--prompt=three')
  rows = said('--prompt=zero', f'--prompts={tmp_path}/rows.jsonl')
  assert [c['prompt'] for c in rows] == ['zero', 'two\nlines', 'three']
  stop = max((c['text'] for c in lines), key=len)[2:4]
  for before, cut in zip(lines, said(f'--prompts={tmp_path}/lines.txt', f'--stop={stop}')):
    assert cut['text'] == before['text'].partition(stop)[0]
    assert (cut['stopped_by'] == 'stop') == (stop in before['text'])


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--prompts={folder}/none.txt', 'none.txt'),
    ('--prompts={folder}/empty.txt', 'empty.txt holds no prompt'),
    ('--batch=0', '0 prompts at once: at least 1 is needed'),
  ],
)
def test_prompts_that_are_none_and_batches_that_are_none(finished, tmp_path, flag, words):
  (tmp_path / 'empty.txt').write_text('')
  line = in_process.error_line('generate', f'--workdir={finished}', flag.format(folder=tmp_path))
  assert words in line


def test_a_prompt_longer_than_the_context_is_refused(finished):
  line = programs.error_line('generate', f'--workdir={finished}', f'--prompt={"x1y2" * 40}')
  assert 'the context is 32 (data.seq_len)' in line


def test_generation_fills_the_context_and_says_so(run):
  (completion,) = generate(run, ['the expert'], 1000, Sampling(temperature=1.0), seed=3)
  ids = [run.tokenizer.bos_id, *run.tokenizer.encode('the expert')]
  room = run.config.data.seq_len + 1 - len(ids)
  assert completion.stopped_by == 'end' or (
    completion.stopped_by == 'context' and len(completion.tokens) == room
  )


@pytest.mark.parametrize('program', ['evaluate', 'generate'])
def test_a_workdir_without_checkpoints_is_named(program, tmp_path):
  assert f'no checkpoint in {tmp_path}' in in_process.error_line(program, f'--workdir={tmp_path}')


def test_a_step_that_is_not_there_names_those_that_are(finished):
  assert 'no checkpoint of step 7' in in_process.error_line(
    'evaluate', f'--workdir={finished}', '--step=7'
  )


def test_notebook_gets_the_same_parameters_on_any_device_count(finished, run):
  """Opened by a process with four devices, after a run on one."""
  code = (
    'import sys, jax, numpy as np; from moe.run import load_run; run = load_run(sys.argv[1]);'
    'print(jax.device_count(), run.step, '
    'repr(float(sum(np.abs(np.asarray(x, np.float64)).sum() '
    'for x in jax.tree.leaves(run.params)))), '
    'run.tokenizer.decode(run.tokenizer.encode("the expert")))'
  )
  environment = {
    'XLA_FLAGS': f'{programs.os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=4'
  }
  done = subprocess.run(
    [sys.executable, '-c', code, str(finished)],
    cwd=programs.ROOT,
    env=programs.os.environ | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  total = float(sum(np.abs(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(run.params)))
  assert done.stdout.split(maxsplit=3) == ['4', '40', repr(total), 'the expert\n']


def test_notebook_run_can_be_applied(run):
  ids = np.array([[run.tokenizer.bos_id, *run.tokenizer.encode('the expert router')]])
  hidden, aside, _ = run.model.apply(
    {'params': run.params}, ids, np.arange(ids.size)[None], np.ones_like(ids)
  )
  logits = run.model.apply({'params': run.params}, hidden, method='logits')
  assert logits.shape == (1, ids.size, run.config.model.vocab_size) and logits.dtype == jnp.float32
  assert (
    aside.stats.counts_BE.sum()
    == ids.size * run.config.moe.experts_per_token * run.config.model.num_layers
  )


def test_evaluate_saves_the_routing_of_what_it_scores(finished, run, scores, tmp_path):
  path = tmp_path / 'routing.parquet'
  flags = (f'--workdir={finished}', f'--save_routing={path}')
  told = json.loads(in_process.check('evaluate', *flags, '--format=json'))
  table = parquet.read_table(path)
  assert told['domains'] == scores['domains'] and told['routing_rows'] == table.num_rows
  assert table.num_rows == run.config.model.num_layers * told['total']['tokens']
  assert np.mean(table['loss']) == pytest.approx(told['total']['loss'], rel=1e-5)
  assert 'File exists' in in_process.error_line('evaluate', *flags)
  path.unlink()
  assert f' rows in {path}\n' in in_process.check('evaluate', *flags)
  elsewhere = f'--save_routing={path}/below'
  # The path is checked before the run is read: there is no such run.
  line = in_process.error_line('evaluate', f'--workdir={tmp_path}/none', elsewhere)
  assert 'cannot write the routing in' in line
