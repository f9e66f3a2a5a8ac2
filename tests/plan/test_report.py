"""Recorded plans, their table, and the lines of them that config files quote."""

import json
from pathlib import Path

import pytest

from launch.plan import report

ROOT = Path(__file__).parents[2]
RECORDS = [json.loads(line) for line in (ROOT / 'experiments/results/plans.jsonl').read_text().splitlines()]
PLANNED = {
  ('validation:deepseek_moe', 'v5e:2x4'),
  ('scaling:deepseek_moe_16b', 'v5p:4x4x4'),
  ('scaling:deepseek_moe_16b', 'v5e:8x8'),
  ('scaling:deepseek_moe_16b', 'h100:8'),
  ('scaling:deepseek_moe_145b', 'v5p:8x8x8'),
}


def test_what_make_plan_plans_is_recorded():
  assert {(record['config'], record['topology']) for record in RECORDS} == PLANNED
  assert (ROOT / 'experiments/results/plans.md').read_text() == report.table(RECORDS)
  makefile = (ROOT / 'Makefile').read_text()
  for config, topology in PLANNED:
    file, variant = config.split(':')
    assert f'--config=experiments/{file}.py:{variant} --topology={topology}\n' in makefile


@pytest.mark.parametrize('record', RECORDS, ids=lambda record: record['topology'])
def test_a_recorded_plan_keeps_the_bars(record):
  assert record['fits'] and record['reserved_bytes_per_device'] <= record['capacity_bytes_per_device']
  assert record['flops_per_step']['model_over_accounting'] == pytest.approx(1, abs=0.05)
  assert record['compile_seconds'] < 600 and record['compile_resident_bytes'] < 16 * 2**30


@pytest.mark.parametrize('record', RECORDS, ids=lambda record: record['topology'])
def test_config_files_quote_the_plan(record):
  file = record['config'].partition(':')[0]
  assert report.summary(record) in (ROOT / 'experiments' / f'{file}.py').read_text()


def test_a_new_plan_replaces_that_of_its_config_and_machine(tmp_path):
  path = tmp_path / 'plans.jsonl'
  for record in (*RECORDS, {**RECORDS[0], 'microbatches': 7}):
    report.record_plan(path, record)
  written = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(written) == len(RECORDS) and written[0]['microbatches'] == 7
  assert path.with_suffix('.md').read_text() == report.table(written)
