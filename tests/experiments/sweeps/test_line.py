"""The line of a study, made from what a run leaves."""

import dataclasses
import json
import os
import platform
from pathlib import Path

import pytest

from experiments.studies.common import Run
from experiments.sweeps import (
  ledger,
  line,
  machine,
  plan,
)
from moe.errors import UserError
from moe.storage import provenance
from tests.experiments.reports import synthetic
from tests.experiments.sweeps.jobs import CONFIG, jobs_of
from tests.launch.runs import programs


def test_a_line_without_all_evaluations_is_missing(tmp_path):
  (job,) = jobs_of(
    tmp_path,
    Run('a', CONFIG, evaluations={'masked': {'masked_share': 0.25}}),
  )
  made = {'run': 'a', 'seed': 0, 'config_hash': job.config_hash, 'evaluations': {}}
  key = ('a', 0, job.config_hash)
  assert ledger.missing(job, {key: made}) == list(job.runs)
  made['evaluations'] = {'masked': {'intervention': {'masked_share': 0.25}, 'total': {}}}
  assert ledger.missing(job, {key: made}) == []


def test_text_of_another_vocabulary_has_another_name():
  """The name of a line's data depends on their tokenizer, and so on its vocabulary."""
  line = lambda data, size: {
    'run': 'x',
    'seed': 0,
    'data': data,
    'settings': {'model.vocab_size': size},
  }
  ledger.check_data('runs.jsonl', [line('a', 1024), line('b', 2048), line('b', 2048)])
  with pytest.raises(UserError, match='different data'):
    ledger.check_data('runs.jsonl', [line('a', 1024), line('b', 2048), line('c', 2048)])


def test_text_of_another_source_is_other_text_where_the_study_says_so():
  def line(data, **differs):
    return {'run': 'x', 'seed': 0, 'data': data, 'differs': differs}

  tuned = {'data.sources': 'chats=b.jsonl'}
  ledger.check_data('runs.jsonl', [line('a'), line('b', **tuned), line('b', **tuned)])
  with pytest.raises(UserError, match='different data'):
    ledger.check_data('runs.jsonl', [line('a'), line('b', **tuned), line('c', **tuned)])


def _prepare(job, tokens=5, **settings):
  """Writes the metadata that names a job's prepared text; returns the name."""
  job.data_dir.mkdir(parents=True, exist_ok=True)
  entry = {'documents': 1, 'bytes': 9, 'tokens': tokens, 'files': {}}
  metadata = {
    'settings': settings,
    'tokenizer': {'sha256': 'x'},
    'splits': {'train': {'prose': entry}},
  }
  (job.data_dir / 'metadata.json').write_text(json.dumps(metadata))
  return line._data(job)


def test_a_line_names_the_contents_of_its_data(tmp_path):
  (job,) = jobs_of(tmp_path, Run('a', CONFIG))
  assert line._data(job) is None
  assert _prepare(job) == _prepare(job, sources='elsewhere') != _prepare(job, tokens=6)


def test_what_another_study_has_recorded_is_taken_where_nothing_differs(tmp_path):
  masked = {'masked_share': 0.25}
  run = Run('a', CONFIG, evaluations={'masked': masked})
  (job,) = jobs_of(tmp_path, run)
  score = {'intervention': masked, 'total': {'loss': 3.0}}
  other = {
    'study': 'other',
    'idle_experts': 1.5,
    'run': 'b',
    'seed': 0,
    'config_hash': job.config_hash,
    'data': _prepare(job),
    'commit': 'its own',
    'config': 'of the other',
    'differs': {'moe.num_experts': 4},
    'evaluations': {'shared off': {'intervention': {'without_shared': True}}, 'top off': score},
  }
  taken = lambda of, run=run: line.taken(of, 'study', run, job, ['model.num_layers'])
  assert taken([{**other, 'seed': 1}, other]) == {
    **other,
    'study': 'study',
    'run': 'a',
    'config': CONFIG,
    'differs': {'model.num_layers': job.config.model.num_layers},
    'evaluations': {'masked': score},
    'measures': {},
  }
  lacking = {key: value for key, value in other.items() if key != 'idle_experts'}
  assert taken([lacking, other])['idle_experts'] == 1.5 and 'idle_experts' not in taken([lacking])
  for change in (
    {'seed': 1},
    {'config_hash': '00000000'},
    {'data': 'other'},
    {'data': None},
    {'evaluations': {}},
  ):
    assert taken([{**other, **change}]) is None
  assert (
    taken([other], dataclasses.replace(run, evaluations={'masked': {'masked_share': 0.5}})) is None
  )
  _prepare(job, tokens=6)
  assert taken([other]) is None
  (job.data_dir / 'metadata.json').unlink()
  assert taken([other]) is None and taken([{**other, 'data': None}]) is None
  (job.data_dir / 'metadata.json').write_text('{"splits": {')
  with pytest.raises(UserError, match=r'metadata\.json is damaged .*prepared again'):
    taken([other])


@pytest.mark.parametrize(
  ('cpuinfo', 'name'),
  [
    (
      'model name\t: AMD EPYC\nflags\t\t: fpu avx2 bmi2\n\nmodel name\t: another',
      '3 × AMD EPYC (avx2)',
    ),
    (
      'model name: Xeon\nflags: avx2 avx512f avx512_bf16 amx_bf16',
      '3 × Xeon (avx2, avx512f, avx512_bf16, amx_bf16)',
    ),
    ('processor : 0\nFeatures : fp asimd bf16', f'3 × {platform.machine()} (asimd, bf16)'),
    ('', f'3 × {platform.machine()}'),
  ],
)
def test_a_machine_is_told_from_one_with_other_cores(cpuinfo, name, monkeypatch):
  monkeypatch.setattr(Path, 'read_text', lambda *unused, **named: cpuinfo)
  monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 2, 3}, raising=False)
  assert machine.describe_without_device()['cpu'] == name


def test_the_final_loss_depends_on_the_context_it_is_measured_with(tmp_path):
  hashes = [
    jobs_of(tmp_path, Run('a', CONFIG, overrides))[0].config_hash
    for overrides in (
      {},
      {'evaluation.context': 0.5},
      {'evaluation.context': 0.25},
      {'evaluation.max_batches': 3},
    )
  ]
  assert hashes[0] == hashes[1] == hashes[3] != hashes[2]


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (
      {'train.num_steps': 1e3},
      r"run 'a' of the study study: config\.train\.num_steps must be an integer, not 1000\.0",
    ),
    ({'train.num_steps': '20'}, r"run 'a' .*config\.train\.num_steps must be an integer, not '20'"),
    ({'optimizer.decay_at': 0.8}, r"run 'a' .*config\.optimizer\.decay_at must be a tuple"),
    ({'data.sources': {'prose': 'x'}}, r"run 'a' .*config\.data\.sources must be a string"),
  ],
)
def test_an_override_of_a_wrong_type_names_the_run_and_the_key(overrides, message, tmp_path):
  with pytest.raises(UserError, match=message):
    jobs_of(tmp_path, Run('a', CONFIG, overrides))


def test_damaged_metrics_stop_one_run_and_no_study(tmp_path):
  (job,) = jobs_of(tmp_path, Run('a', CONFIG))
  job.workdir.mkdir(parents=True)
  for damaged in (b'\xff\n', b'{"step": 1}\n', b'{"step": "1", "loss": 2}\n', b'\0\0\n', b'\n'):
    (job.workdir / 'metrics.jsonl').write_bytes(b'{"step": 1, "loss": 2.0}\n' + damaged)
    assert not job.diverged and not job.ended
    with pytest.raises(UserError, match=r'metrics\.jsonl, line 2 is damaged'):
      job.metrics()
    with pytest.raises(UserError, match=r'metrics\.jsonl, line 2 is damaged'):
      line.best_step(job.workdir, [1])
  (job.workdir / 'metrics.jsonl').write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "l')
  assert [line['step'] for line in job.metrics()] == [1]  # the second is being written


@pytest.mark.parametrize('damaged', [b'\xff', b'{"scores"', b'[]', b'{"scores": [3]}', b'{}'])
def test_damaged_scores_are_named(damaged, tmp_path):
  (tmp_path / 'scores.json').write_bytes(damaged)
  with pytest.raises(UserError, match=r'scores\.json is damaged .*scored again'):
    line.read_scores(tmp_path)


def test_a_run_that_went_on_with_other_code_names_both(tmp_path):
  for commit in ('abc', 'abc', 'def-dirty', 'abc'):
    machine.note_commit(tmp_path, commit)
  assert (
    machine.commits(tmp_path) == ['abc', 'def-dirty'] and machine.commits(tmp_path / 'absent') == []
  )


def test_figures_leave_out_lines_of_another_config(tmp_path):
  study = 'experiments/studies/shared_off.py'
  (job,) = plan.jobs(plan.load(study), ledger.PROXY, [0], {}, tmp_path)
  file = ledger.path(tmp_path, 'shared_off')
  for number, config_hash in enumerate(('00000000', job.config_hash)):
    for seed in (1, 0):
      ledger.put(
        file, {'run': 'deepseek_moe', 'seed': seed, 'config_hash': config_hash, 'number': number}
      )
  assert [(made['number'], made['seed']) for made in ledger.current(study, tmp_path)] == [
    (1, 0),
    (1, 1),
  ]


def _write_run(job, scores):
  """Writes what training and scoring leave, for 40 logged steps."""
  job.workdir.mkdir(parents=True)
  metrics = [
    {
      'step': step,
      'loss': 10 / step,
      'tokens_per_second': 128.0,
      'max_vio_N': [step / 10, step / 5],
    }
    for step in range(1, 41)
  ]
  (job.workdir / 'metrics.jsonl').write_text(''.join(f'{json.dumps(each)}\n' for each in metrics))
  content = {'final_step': 40, 'best_step': 30, 'machine': {'jax': '0'}, 'scores': scores}
  (job.workdir / 'scores.json').write_text(json.dumps(content))


def test_a_line_from_what_a_run_has_left(tmp_path, monkeypatch):
  run = Run('a', CONFIG, evaluations={'masked': {'masked_share': 0.25}})
  (job,) = jobs_of(tmp_path, run)
  score = lambda step, intervention, loss: {
    'step': step,
    'intervention': intervention,
    'total': {'loss': loss, 'bits_per_byte': loss / 2},
    'domains': {},
    'expert_load': [[1.0]],
    'readings': {'a': {'shared_gate': [0.5]}},
    'mean_readings': {'shared_gate': [0.5]},
  }
  _write_run(job, [score(40, {}, 2.0), score(30, {}, 1.5), score(40, {'masked_share': 0.25}, 7.0)])
  made = line.make('study', run, job, 'proxy', ['moe.num_experts'])
  assert (made['final']['total']['loss'], made['best']['total']['loss'], made['best']['step']) == (
    2.0,
    1.5,
    30,
  )
  assert made['evaluations'] == {
    'masked': {
      'intervention': {'masked_share': 0.25},
      'total': {'loss': 7.0, 'bits_per_byte': 3.5},
      'domains': {},
    }
  }
  assert made['seconds'] == 40 * 4 * 32 / 128
  assert made['max_vio'] == pytest.approx(
    {'final': 6.0, 'last_tenth': (5.55 + 5.7 + 5.85 + 6.0) / 4}
  )
  assert made['readings'] == {'a': {'shared_gate': [0.5]}}
  assert len(made['max_vio_curve']) == len(made['loss_curve'])
  assert made['max_vio_curve'][-1] == (40, pytest.approx(6.0))
  assert (made['commit'], made['data']) == ('unknown', None)
  assert made['differs'] == {'moe.num_experts': 4}
  for commit in ('abc', 'def'):
    machine.note_commit(job.workdir, commit)
  assert line.make('study', run, job, 'proxy', [])['commit'] == 'abc, def'
  assert made['init_from'] is None
  source = {'path': '/runs/a', 'step': 30, 'checksum': '0a1b2c3d'}
  provenance.note(job.workdir, {'commit': 'abc', 'init_from': source})
  assert line.make('study', run, job, 'proxy', [])['init_from'] == source
  # The lines that the report's tests make up have no key that a real line lacks.
  monkeypatch.chdir(programs.ROOT)
  made_up = synthetic.lines('shared_off', seeds=[0])[0]
  assert tuple(made) == ledger.FIELDS
  assert made_up.keys() <= made.keys() and made_up['max_vio'].keys() == made['max_vio'].keys()
  with pytest.raises(UserError, match='was not scored'):
    line.make(
      'study', Run('a', run.config, evaluations={'b': {'without_shared': True}}), job, 'proxy', []
    )


def test_a_run_that_gave_up_has_a_line_without_losses(tmp_path):
  run = Run(
    'a',
    CONFIG,
    {'train.max_bad_steps': 2},
    {'masked': {'masked_share': 0.25}},
  )
  (job,) = jobs_of(tmp_path, run)
  job.workdir.mkdir(parents=True)
  logged = {
    'step': 7,
    'loss': None,
    'tokens_per_second': 128.0,
    'max_vio_N': [None, 1.0],
    'dead_experts_N': [0, 1],
  }
  for streak, diverged in ((2, False), (3, True)):
    (job.workdir / 'metrics.jsonl').write_text(json.dumps(logged | {'bad_streak': streak}) + '\n')
    assert (job.diverged, job.ended, job.trained) == (diverged, diverged, False)
  made = line.make('study', run, job, 'proxy', [])
  file = tmp_path / 'study' / 'runs.jsonl'
  ledger.put(file, made)
  (read,) = ledger.read(file).values()
  assert read['final'] == {'step': 7, 'total': {'loss': None, 'bits_per_byte': None}, 'domains': {}}
  assert (
    read['evaluations']['masked']['total']['loss'] is None
    and ledger.missing(job, ledger.read(file)) == []
  )
  assert read['max_vio'] == {'final': None, 'last_tenth': None}
