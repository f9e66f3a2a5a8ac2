"""What a sweep plans: locks, runs, overrides, places."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.studies.common import LONG, PROXY, Run
from experiments.sweeps import (
  children,
  places,
  plan,
)
from moe.errors import UserError
from tests.experiments.sweeps.jobs import CONFIG, jobs_of
from tests.launch.runs import programs

# A sweep that starts a child and is then killed.
_KILLED = """
import os, sys
from pathlib import Path
from experiments.sweeps.children import Children, sole_sweep
with sole_sweep(Path(sys.argv[1])) as lock, Children(lock) as children:
  child = children.start(['-c', 'import time; time.sleep(300)'], Path(sys.argv[1]) / 'log')
  print(child.pid, flush=True)
  os.kill(os.getpid(), 9)
"""


def test_a_second_sweep_is_refused(tmp_path):
  with children.sole_sweep(tmp_path) as lock, children.Children(lock):
    second = subprocess.run(
      programs.command(
        'sweep', '--sweep=tests/experiments/sweeps/tiny_study.py', f'--workdir={tmp_path}'
      ),
      cwd=programs.ROOT,
      capture_output=True,
      text=True,
    )
  assert second.returncode == 2 and f'(process {os.getpid()})' in second.stderr, second.stderr
  with children.sole_sweep(tmp_path):
    pass


def test_what_a_killed_sweep_has_left_running_keeps_the_next_out_until_it_ends(tmp_path):
  killed = subprocess.run(
    [sys.executable, '-c', _KILLED, str(tmp_path)],
    cwd=programs.ROOT,
    capture_output=True,
    text=True,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  child = int(killed.stdout)
  try:
    with pytest.raises(UserError, match=rf'process {child}\)'), children.sole_sweep(tmp_path):
      pass
  finally:
    os.kill(child, signal.SIGKILL)
  deadline = time.monotonic() + 20
  while True:
    try:
      with children.sole_sweep(tmp_path):
        return
    except UserError:
      assert time.monotonic() < deadline
      time.sleep(0.05)


def test_only_the_runs_named_are_planned(tmp_path):
  study = plan.Study('study.py', lambda scale: [Run(name, CONFIG) for name in 'ab'])
  planned = plan.jobs(study, None, [0], {}, tmp_path)
  (job,) = plan.named(study, planned, ['b'])
  assert [run.name for run in job.runs] == ['b']
  with pytest.raises(UserError, match="study has no run 'c': it has a, b"):
    plan.named(study, planned, ['b', 'c'])


def test_an_override_may_be_written_as_a_user_writes_it(tmp_path):
  overrides = {'optimizer.peak_lr': 1, 'optimizer.decay_at': [0.5, 0.75]}
  (job,) = jobs_of(tmp_path, Run('a', CONFIG, overrides))
  assert {'--config.optimizer.peak_lr=1.0', '--config.optimizer.decay_at=(0.5, 0.75)'} <= set(
    job.flags
  )


@pytest.mark.parametrize(
  ('run', 'message'),
  [
    (
      Run('a', CONFIG, evaluations={'masked': {'masked_shar': 0.25}}),
      r"run 'a' .* 'masked' has no 'masked_shar': it takes masked_share, ",
    ),
    (
      Run('a', CONFIG, evaluations=['masked']),
      r"run 'a' .*evaluations must be .*not \['masked'\]",
    ),
    (Run('a', CONFIG, evaluations={'masked': 0.25}), r"'masked' must be a name with .*not 0\.25"),
    (Run('a', CONFIG, evaluations={3: {}}), 'the evaluation 3 must be a name'),
    (Run('a', CONFIG, evaluations={'b': {3: 1}}), "'b' has no '3'"),
    (Run('a', CONFIG, evaluations={'b': {'masked_share': {1}}}), "'b' is no plain JSON"),
    (
      Run('a', CONFIG, evaluations={'b': {'experts_per_token': 99}}),
      "the evaluation 'b': experts_per_token=99 must be a whole number from 1 to",
    ),
    (
      Run('a', CONFIG, evaluations={'b': {'without_shared': 'no'}}),
      "evaluation 'b': without_shared='no' must be True or False",
    ),
    (
      Run('a', 'experiments/proxy.py:dense', measures=('specialisation',)),
      "the measure 'specialisation' needs two routed experts of one width",
    ),
    (
      Run('a', 'experiments/proxy.py:deepseek_moe', measures=('shared_gate',)),
      "the measure 'shared_gate' needs moe.shared_gate=True",
    ),
    (
      Run('a', 'experiments/proxy.py:hash', evaluations={'b': {'masked_share': 0.25}}),
      "evaluation 'b': masked_share=0.25 needs a router that ranks all experts",
    ),
    (Run('a', CONFIG, {'moe.gate_mass': True}), 'moe.gate_mass must be .*not True'),
    (Run('a', CONFIG, evaluations={'b': {'masked_share': float('nan')}}), "'b' is no plain JSON"),
    (Run(3, CONFIG), 'is named 3: a name is one line'),
    (Run('', CONFIG), "is named '': a name is one line"),
    (Run('a\nb', CONFIG), r"is named 'a\\nb': a name is one line"),
    (Run('a', None), "run 'a' .*config must be FILE.py"),
    (Run('a', CONFIG, ['x']), r"run 'a' .*overrides must be .*not \['x'\]"),
    (Run('a', CONFIG, {3: 1}), "run 'a' .*overrides must be values by dotted key"),
  ],
)
def test_what_a_run_cannot_have_is_found_before_training(run, message, tmp_path):
  with pytest.raises(UserError, match=message):
    jobs_of(tmp_path, run)


def test_files_are_found_here_or_in_the_package(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shipped = str(places.ROOT / 'experiments/studies/table1.py')
  assert places.study('table1') == places.study('experiments/studies/table1.py') == shipped
  assert places.study('mine') == 'mine' and places.study('mine.py') == 'mine.py'
  assert places.located('absent.py') == 'absent.py'
  (job,) = plan.jobs(plan.load('shared_off'), PROXY, [0], {}, tmp_path / 'runs')
  assert f'--config={places.ROOT}/experiments/proxy.py:deepseek_moe' in job.flags
  Path('experiments').mkdir()
  Path('experiments/proxy.py').write_text('')
  with pytest.raises(UserError, match=r'experiments/proxy\.py is a file here and one of the inst'):
    places.located('experiments/proxy.py')
  monkeypatch.chdir(places.ROOT)
  assert places.study('table1') == 'experiments/studies/table1.py'


def test_a_child_runs_this_package_whatever_lies_in_the_folder_at_hand(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('experiments', 'launch'):
    Path(name).mkdir()
    Path(name, '__init__.py').write_text('raise RuntimeError("not ours")')
  with children.sole_sweep(tmp_path) as lock, children.Children(lock) as started:
    process = started.start(['-c', 'import experiments, launch'], tmp_path / 'log')
    assert process.wait() == 0, (tmp_path / 'log').read_text()


def test_a_study_fixes_its_number_of_seeds(tmp_path):
  good, bad = tmp_path / 'good.py', tmp_path / 'bad.py'
  for study, seeds in ((good, 7), (bad, 0)):
    study.write_text(f'SEEDS = {seeds}\ndef sweep(scale): return []\n', encoding='utf-8')
  assert plan.load(str(good)).seeds_at(PROXY) == range(7)
  scaled, tiny = tmp_path / 'scaled.py', tmp_path / 'tiny.py'
  scaled.write_text("SEEDS = {'long': 9}\nSCALE = 'long'\ndef sweep(scale): return []\n")
  loaded = plan.load(str(scaled))
  assert (loaded.seeds_at(LONG), loaded.seeds_at(PROXY)) == (range(9), range(3))
  assert loaded.scale == 'long'
  tiny.write_text("SCALE = 'tiny'\ndef sweep(scale): return []\n")
  with pytest.raises(UserError, match="'tiny' is no scale: one of proxy, long, paper"):
    plan.load(str(tiny))
  with pytest.raises(UserError, match='SEEDS must be a number of at least 1, not 0'):
    plan.load(str(bad))


def test_a_default_that_only_rounds_differently_names_no_run(tmp_path):
  """Runs from before model.unroll looped over the layers; today's default writes the loop out."""
  asked = Run('asked', CONFIG, {'model.unroll': 1})
  usual, looped = jobs_of(tmp_path, Run('usual', CONFIG), asked)
  assert 'model.unroll' not in plan.settings(usual.config)
  named = plan.settings(looped.config)
  assert named == plan.settings(usual.config) | {'model.unroll': 1}
  assert usual.config_hash != looped.config_hash


@pytest.mark.parametrize('is_at_hand', [True, False])
def test_what_lies_beside_a_config_is_found_where_it_is_here(is_at_hand, tmp_path, monkeypatch):
  """A child finds it if the program was started by `python -m`, but not if by its script."""
  (tmp_path / 'helper.py').write_text('')
  monkeypatch.chdir(tmp_path)
  rest = [each for each in sys.path if each not in ('', str(tmp_path))]
  monkeypatch.setattr(sys, 'path', ['', *rest] if is_at_hand else rest)
  with children.sole_sweep(tmp_path) as lock, children.Children(lock) as started:
    child = started.start(['-c', 'import experiments.sweeps, helper'], tmp_path / 'log')
    assert (child.wait() == 0) == is_at_hand
