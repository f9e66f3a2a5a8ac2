"""Recorded plans, their table, and which configs must have a plan."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import ablations, scaling, validation
from experiments.plans import DECODE_PLANS, PLANS
from moe.errors import UserError
from moe.planner import decode_report, report

ROOT = Path(__file__).parents[3]
RECORDS = [
  json.loads(line) for line in (ROOT / 'experiments/results/plans.jsonl').read_text().splitlines()
]
NAMES = [f'{record["config"]}@{record["topology"]}' for record in RECORDS]
FILES = {'ablations': ablations, 'scaling': scaling, 'validation': validation}  # of paper scale


def _of_paper_scale(config: str):
  """Returns a config of one of FILES, with its name blanked."""
  file, variant = config.split(':')
  return FILES[file].get_config(variant).to_dict() | {'name': ''}


def test_every_config_of_paper_scale_has_a_plan():
  """Some are one model under two names. Add a new one to experiments/plans.py, then `make plan`."""
  planned = [_of_paper_scale(record['config']) for record in RECORDS]
  names = [f'{file}:{variant}' for file, module in FILES.items() for variant in module.VARIANTS]
  assert not [name for name in names if _of_paper_scale(name) not in planned]


def test_what_make_plan_plans_is_recorded():
  assert (ROOT / 'experiments/results/plans.md').read_text() == report.table(RECORDS)
  assert sorted(PLANS) == sorted(NAMES)
  done = subprocess.run(
    ['make', '--dry-run', 'plan', f'PYTHON={sys.executable}'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  listed = re.findall(r'(?:ablations|scaling|validation):\w+@\S+', done.stdout.replace(';', ' '))
  assert sorted(listed) == sorted([*PLANS, *DECODE_PLANS])


def test_what_decodes_is_recorded_and_the_16b_fits_on_40_gb_and_is_fast():
  """The paper's claims on fit and speed (5.2.1), as decoding's roofline predicts them."""
  path = ROOT / 'experiments/results/decode_plans.jsonl'
  records = [json.loads(line) for line in path.read_text().splitlines()]
  table = decode_report.table(records, 'scaling:deepseek_7b')
  assert path.with_suffix('.md').read_text() == table
  assert set(map(_asked, records)) == set(DECODE_PLANS)
  on_a100 = {
    (r['config'].partition(':')[2], r['batch']): r
    for r in records
    if (r['topology'], r['dtype']) == ('a100-40:1', 'bfloat16')
  }
  assert on_a100['deepseek_moe_16b', 8]['fits'] and not on_a100['deepseek_moe_16b', 64]['fits']
  ours, dense = (on_a100[name, 1] for name in ('deepseek_moe_16b', 'deepseek_7b'))
  assert ours['context'] == 4096 and ours['dtype'] == 'bfloat16'
  assert ours['tokens_per_second'] >= 2.3 * dense['tokens_per_second']


def _asked(record):
  topology, dtype = record['topology'], record['dtype']
  machine = {'v5e:1x1': 'v5e:1', 'v5e:2x2': 'v5e:4'}.get(topology, topology)
  return f'{record["config"]}@{machine}' + (f',{dtype}' if dtype != 'bfloat16' else '')


def test_where_a_plan_is_to_be_recorded_is_tried_before(tmp_path):
  report.try_record(str(tmp_path / 'new/plans.jsonl'))
  (tmp_path / 'plans.md').mkdir()
  (tmp_path / 'file').touch()
  for name, wanted in (('plans.jsonl', 'plans.md must be a file'), ('file/x.jsonl', 'the record')):
    with pytest.raises(UserError, match=wanted):
      report.try_record(str(tmp_path / name))


@pytest.mark.parametrize('record', RECORDS, ids=NAMES)
def test_a_recorded_plan_keeps_the_bars(record):
  assert (
    record['fits'] and record['reserved_bytes_per_device'] <= record['capacity_bytes_per_device']
  )
  assert record['flops_per_step']['model_over_accounting'] == pytest.approx(1, abs=0.05)
  assert record['loops_counted_once'] == []
  config = _of_paper_scale(record['config'])
  settings = config['train']['microbatches'], config['data']['batch_size'], config['model']['remat']
  assert (record['microbatches'], record['batch_size'], record['remat']) == settings
  assert record['compile_seconds'] < 600 and record['compile_resident_bytes'] < 16 * 2**30


def test_a_new_plan_replaces_that_of_its_config_and_machine(tmp_path):
  path = tmp_path / 'plans.jsonl'
  for record in (*RECORDS, {**RECORDS[0], 'microbatches': 7}):
    report.record_plans(path, [record], report.table)
  written = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(written) == len(RECORDS) and written[0]['microbatches'] == 7
  assert path.with_suffix('.md').read_text() == report.table(written)
