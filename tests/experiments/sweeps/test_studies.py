"""Every study of experiments/studies: its runs are configs that can be trained,
and that are comparable with each other.
"""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import studies
from experiments.studies import analysis, pilot
from experiments.studies.common import LONG, PROXY, SCALES
from experiments.sweeps import plan
from moe import config as moe_config
from moe.accounting import account
from tests.launch.runs.programs import ROOT

_FOLDER = Path('experiments/studies')
_SHARED = (
  *('__init__', 'analysis', 'common', 'intervals', 'laws', 'verdicts'),
  *(*studies.PILOTS, *studies.BEYOND),
)
STUDIES = sorted(path.stem for path in (ROOT / _FOLDER).glob('*.py') if path.stem not in _SHARED)
_OWN = (
  'moe.',
  'model.d_ff',
  'model.num_dense_layers',
  'model.d_model',
  'model.num_heads',
  'model.num_kv_heads',
)

# dense_x16 has room for fewer rows at a time.
_OF_ITS_OWN = {('validation:dense_x16', 'train.microbatches')}
_RATE = 'optimizer.peak_lr'


def jobs(name, scale=PROXY, seeds=(0,)):
  return plan.jobs(plan.load(str(ROOT / _FOLDER / f'{name}.py')), scale, seeds, {}, Path('runs'))


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)


def test_the_learning_rates_are_the_best_that_the_pilot_recorded():
  best, lines = {}, (ROOT / 'experiments/results/pilot_long/runs.jsonl').read_text()
  for line in map(json.loads, lines.splitlines()):
    searched = re.fullmatch(r'(?P<what>.+)_rate_(?P<rate>[\d.]+)', line['run'])
    if searched:
      found = (line['final']['total']['loss'], float(searched['rate']))
      best[searched['what']] = min(found, best.get(searched['what'], found))
  widths = {f'{variant}_d{d}' for variant, each in LONG.widths.items() for d in each if d != 48}
  assert widths - best.keys() <= {'deepseek_moe_d72'}  # not tried yet
  for job in jobs('scaling', LONG) + jobs('table1', LONG) + jobs('larger', LONG):
    for run in job.runs:
      if run.name.removesuffix('_d48') in best:
        assert job.config.optimizer.peak_lr == best[run.name.removesuffix('_d48')][1], run.name


def test_all_ten_are_there():
  expected = (
    'balance disable_top fewer_active granularity half_active larger scaling '
    'shared_off shared_ratio table1'
  )
  assert expected.split() == STUDIES == sorted(studies.STUDIES)


@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
@pytest.mark.parametrize('name', STUDIES)
def test_runs_differ_in_their_experts_alone(name, scale):
  planned = jobs(name, scale, (0, 1))
  for seed in (0, 1):
    flat = [moe_config.flatten(job.config.to_dict()) for job in planned if job.seed == seed]
    assert {(config['train.seed'], config['data.seed']) for config in flat} == {(seed, seed)}
    for key in flat[0]:
      if key not in ('name', *([_RATE] if scale is LONG else ())) and not key.startswith(_OWN):
        assert (
          len({config[key] for config in flat if (config['name'], key) not in _OF_ITS_OWN}) == 1
        ), key
  assert sum(len(job.runs) for job in planned) % 2 == 0


@pytest.mark.parametrize('name', STUDIES)
def test_a_study_opens_with_its_claim_and_its_command(name):
  text = importlib.import_module(f'experiments.studies.{name}').__doc__
  assert f'python -m launch.sweep --sweep=experiments/studies/{name}.py' in text
  assert 'paper' in text


@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
def test_a_config_has_one_folder_whatever_the_study(scale, tmp_path):
  """A later study finds the folder that an earlier one has made,
  even where that is named after another variant.
  """
  folders = {}
  for name in STUDIES:
    for job in plan.jobs(plan.load(f'experiments/studies/{name}.py'), scale, [0], {}, tmp_path):
      job.workdir.mkdir(parents=True, exist_ok=True)
      assert folders.setdefault(job.config_hash, job.workdir) == job.workdir
  assert len(folders) == len(list(tmp_path.iterdir()))
  if scale is PROXY:
    assert len(folders) < sum(len(jobs(name)) for name in STUDIES)


@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
def test_the_end_points_of_the_ablations_are_the_models_of_table_1(scale):
  of = {
    run.name: job.config_hash
    for name in ('table1', 'granularity', 'shared_ratio')
    for job in jobs(name, scale)
    for run in job.runs
  }
  assert of['granularity_0_2_16'] == of['gshard']
  assert of['granularity_1_7_63'] == of['shared_1'] == of['deepseek_moe']


def test_table_1_has_equal_activated_parameters_where_the_paper_has():
  counts = {job.runs[0].name: account(job.config) for job in jobs('table1')}
  active = {name: count.active_expert_params for name, count in counts.items()}
  assert active['dense'] == active['hash'] == active['switch'] == active['gshard'] / 2
  # Widths are rounded to multiples of 8.
  assert active['deepseek_moe'] == pytest.approx(active['gshard'], rel=0.04)
  assert counts['deepseek_moe'].expert_params == pytest.approx(
    counts['gshard'].expert_params, rel=0.04
  )


def test_experts_of_two_widths_have_as_many_parameters_and_activate_as_many():
  equal, unequal = (account(job.config) for job in jobs('unequal_experts', LONG))
  assert equal == unequal


def test_heads_for_experts_keep_compute_and_parameters():
  few, plain, many = (account(job.config) for job in jobs('attention_share', LONG))
  for each in (few, many):
    assert each.train_flops_per_token == pytest.approx(plain.train_flops_per_token, rel=0.01)
    assert each.total_params == pytest.approx(plain.total_params, rel=0.01)
    assert each.active_params == pytest.approx(plain.active_params, rel=0.06)


def test_scaling_keeps_proportions():
  for scale in SCALES.values():
    for job in jobs('scaling', scale):
      config = job.config
      widths = scale.widths['deepseek_moe' if config.moe.num_experts else 'dense']
      assert config.model.num_heads * config.model.head_dim == config.model.d_model in widths
      width, size = (
        (config.moe.d_expert, 0.25) if config.moe.num_experts else (config.model.d_ff, 1)
      )
      exact = size * 8 / 3 * config.model.d_model
      # variants.resized takes off up to 0.4% before it rounds up.
      assert -0.004 * exact <= width - exact < 8.01


def test_evaluations_are_plain_data():
  runs = [
    (name, run) for name in STUDIES for job in jobs(name) for run in job.runs if run.evaluations
  ]
  assert {name for name, _ in runs} == {'disable_top', 'shared_off', 'fewer_active'}
  for _, run in runs:
    assert json.loads(json.dumps(run.evaluations)) == run.evaluations
    for intervention in run.evaluations.values():
      assert intervention.keys() <= {'masked_share', 'experts_per_token', 'without_shared'}


def test_planning_all_studies_needs_no_jax():
  code = (
    'import sys\nfrom pathlib import Path\n'
    'from experiments.studies.common import PROXY\nfrom experiments.sweeps import plan\n'
    'for path in sys.argv[1:]:\n  assert plan.jobs(plan.load(path), PROXY, [0], {}, Path("runs"))\n'
    "assert 'jax' not in sys.modules"
  )
  files = [f'{_FOLDER}/{name}.py' for name in STUDIES]
  subprocess.run([sys.executable, '-c', code, *files], cwd=ROOT, check=True)


def test_the_pilot_compares_the_same_learning_rates_on_five_architectures_and_two_on_the_larger():
  runs = pilot.sweep()
  rates = {}
  for run in runs:
    rates.setdefault(run.config, set()).add(run.overrides['optimizer.peak_lr'])
  chosen = PROXY.settings['optimizer.peak_lr']
  for larger in ('dense_x4', 'dense_x16'):
    assert rates.pop(f'experiments/proxy.py:{larger}') == {chosen, chosen / 2}
  assert len(rates) == 5 and len(set(map(frozenset, rates.values()))) == 1
  assert chosen in next(iter(rates.values()))
  made = [
    {
      'run': run.name,
      'seed': seed,
      'final': {'total': {'loss': 2 + 0.1 * number + 0.01 * seed * number}},
    }
    for number, run in enumerate(runs)
    for seed in (0, 1)
  ]
  (_, search), (_, noise) = pilot.tables(analysis.Results(made))
  assert [row[0] for row in search] == ['0.001', '0.002', '0.004', '0.008']
  assert search[2] == ('0.004', '2.0000', '2.1000', '2.2000', '2.3000', '2.4000', '–', '–')
  assert ('hash − dense', '0.004', '0.1000, 0.1100', '0.1050', '0.0071') in noise and len(
    noise
  ) == 4 * 9
