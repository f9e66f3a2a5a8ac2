"""The studies beyond the paper: what their analyses make of made-up lines with known numbers."""

import math

import pytest

from experiments.reports import svg
from experiments.studies import (
  BEYOND,
  adaptive_k,
  attention_share,
  balancing,
  coarse_shared,
  longer,
  shared_gate,
  specialisation,
  unequal_experts,
)
from experiments.studies.analysis import Results
from experiments.studies.verdicts import HOLDS, outcomes
from experiments.sweeps import plan

_DOMAINS = ('english', 'chinese', 'code', 'mathematics')


def _line(run, seed, loss, **rest):
  """A line with the fields that analyses read. `evaluations`: losses by name."""
  scored = lambda value: {
    'total': {'loss': value, 'bits_per_byte': value},
    'domains': {domain: {'loss': value} for domain in _DOMAINS},
  }
  evaluations = {name: scored(value) for name, value in rest.pop('evaluations', {}).items()}
  line = {'run': run, 'seed': seed, 'final': scored(loss), 'evaluations': evaluations}
  line |= {'total_params': 1e6, 'active_params': 3e5, 'train_flops': 1e12, 'measures': {}}
  line |= {'readings': None, 'mean_readings': None, 'max_vio': None, 'max_vio_curve': None}
  return line | rest


def _noise(seed):
  return (0.0, 0.004, -0.003)[seed]


def _analysed(study, lines):
  found = study.analyse(Results(lines))
  assert svg.figure('x', 'y', found.panels).count('<text') > 20
  assert {len(row) for row in found.rows} == {len(found.columns)}
  return {each.what: each for each in found.comparisons}, outcomes(found.comparisons)


@pytest.mark.parametrize('name', sorted({*BEYOND} - {'esft'}))  # its runs' names have commas
def test_they_can_be_planned_and_their_names_be_asked_for(name):
  loaded = plan.load(f'experiments/studies/{name}.py')
  jobs = plan.jobs(loaded, plan.common.SCALES[loaded.scale], [0], {}, plan.Path('runs'))
  assert loaded.claim and jobs
  assert not any(',' in run.name for job in jobs for run in job.runs)  # --runs=NAME,NAME


def _whole(study, seeds):
  """Lines with everything that analyses read; the runs of seed 1 have diverged."""
  made = []
  for run in study.sweep():
    for seed in seeds:
      value = 3.0 + _noise(seed) if seed != 1 else None
      layers = [value and value / 10] * 3
      measures = {
        'recall': {
          f'{probe}{after}': layers[:1]
          for probe in ('copying', 'lookup')
          for after in ('', '_after_other')
        },
        'specialisation': {
          name: layers for name in ('domain', 'class', 'next_class', 'substituted', 'removed')
        },
        'shared_gate': {name: layers for name in (*shared_gate._CLASSES, 'closed')},
      }
      readings = {name: layers for name in ('shared_gate', 'experts_taken', 'routed_width')}
      made.append(
        _line(
          run.name,
          seed,
          value,
          evaluations=dict.fromkeys(run.evaluations, value),
          max_vio={'last_tenth': value},
          max_vio_curve=[(20, value)],
          idle_experts=value,
          readings=dict.fromkeys(_DOMAINS, readings) if value else {},
          mean_readings=readings if value else {},
          measures=measures,
        )
      )
  return made


@pytest.mark.parametrize(
  'study',
  [
    *(longer, balancing, shared_gate, adaptive_k, unequal_experts, coarse_shared),
    *(attention_share, specialisation),
  ],
)
@pytest.mark.parametrize('seeds', [(), (0,), (0, 1, 2)], ids=['no lines', 'a seed', 'one diverged'])
def test_they_say_what_is_there(study, seeds):
  found = study.analyse(Results(_whole(study, seeds)))
  assert {len(row) for row in found.rows} == {len(found.columns)}
  decided = outcomes(found.comparisons)
  assert set(decided) == {'undecided'}
  if 1 in seeds:
    assert 'nan' not in str(found.rows)


def test_a_run_without_a_measurement_has_not_diverged():
  lines = [
    _line('a', seed, loss, mean_readings=found and {'openness': found}, measures={'recall': found})
    for seed, loss, found in (
      (0, 3.0, [1.0, 2.0]),
      (1, 3.0, None),
      (2, None, None),
      (3, 3.0, [None]),
    )
  ]
  found = Results(lines).reading('a', 'openness')
  assert found == {0: 1.5, 2: pytest.approx(math.nan, nan_ok=True), 3: found[3]}
  assert math.isnan(found[3])
  assert Results(lines).measure('a', 'none', 'such').keys() == {2}


def test_longer():
  rises = {10: 0.1, 40: 0.3, 100: 0.9}
  lines = [
    _line(
      run.name,
      seed,
      2.5 + 0.1 * seed,
      evaluations={
        name: 2.5 + 0.1 * seed + rises[int(run.name.rpartition('_')[2])] * (scale + _noise(seed))
        for name in run.evaluations
      },
    )
    for run in longer.sweep()
    for seed in range(3)
    for scale in [2.0 if run.name.startswith('deepseek') else 1.0]
  ]
  found, decided = _analysed(longer, lines)
  assert decided == [HOLDS] * 4
  apart = found['rise of DeepSeekMoE − of GShard×1.5, masked 1/16: at 100 − at 10']
  assert apart.interval.mean == pytest.approx(0.9 - 0.1)
  off = found['rise without the shared expert: at 100 − at 10']
  assert off.interval.mean == pytest.approx(2 * (0.9 - 0.1), abs=0.001)


def test_balancing():
  max_vio = {'none': 5.0, 'bias': 0.1, 'quantile': 0.2}
  lines = [
    _line(
      balancing._name(variant, way),
      seed,
      3.0 + 0.1 * _noise(seed) * len(way),
      max_vio={'last_tenth': max_vio.get(way, 0.5) + _noise(seed)},
      max_vio_curve=[(20, 9.0), (160, 3.0), (180, 1.0 + seed)],
      idle_experts=1.0,
    )
    for variant in balancing._MODELS
    for way in balancing._WAYS
    for seed in range(3)
  ]
  found, decided = _analysed(balancing, lines)
  assert found['MaxVio: DeepSeekMoE, bias − loss 0.001'].interval.mean == pytest.approx(-0.4)
  assert decided == [HOLDS] * 8
  assert balancing._mean_curve(Results(lines), 'gshard_bias')[1][1].mean == 2.0


def test_shared_gate():
  readings = lambda seed: {
    domain: {'shared_gate': [0.5 + 0.1 * place + _noise(seed), 0.5 + 0.1 * place]}
    for place, domain in enumerate(_DOMAINS)
  }
  off = lambda seed: {
    domain: {'loss': 3.1 + _noise(seed) + (0.2 + _noise(seed)) * place}
    for place, domain in enumerate(_DOMAINS)
  }
  measures = {'shared_gate': {name: [0.5] for name in (*shared_gate._CLASSES, 'closed')}}
  lines = [
    _line(run, seed, 3.0 + _noise(seed), readings=made, measures=measures)
    | {'evaluations': {'shared off': {'domains': off(seed)}} if made else {}}
    for seed in range(3)
    for run, made in (('deepseek_moe', None), ('gated', readings(seed)))
  ]
  found, decided = _analysed(shared_gate, lines)
  apart = found['openness, most − least open domain']
  assert decided == [HOLDS] * 3 and apart.interval.mean == pytest.approx(0.3)
  needed = found['rise without the shared expert, most − least open domain']
  assert needed.interval.mean == pytest.approx(0.6, abs=0.01)


def test_adaptive_k():
  readings = lambda seed: {
    domain: {'experts_taken': [5.5 + place + _noise(seed)] * 3}
    for place, domain in enumerate(_DOMAINS)
  }
  lines = [
    _line(run, seed, loss + _noise(seed) * loss, readings=made, mean_readings=of_all)
    for seed in range(3)
    for run, loss, made, of_all in (
      ('deepseek_moe', 3.0, None, None),
      ('adaptive', 2.9, readings(seed), {'experts_taken': [7.1 + _noise(seed)] * 3}),
    )
  ]
  found, decided = _analysed(adaptive_k, lines)
  assert decided == [HOLDS] * 3
  assert found['mean K − 7'].interval.mean == pytest.approx(0.1, abs=0.01)
  assert found['K, most − least, of domains'].interval.mean == pytest.approx(3.0)


def test_unequal_experts():
  readings = lambda seed: {
    domain: {'routed_width': [200 + 10 * place + _noise(seed)] * 3}
    for place, domain in enumerate(_DOMAINS)
  }
  lines = [
    _line(run, seed, loss + _noise(seed) * loss, readings=made, mean_readings=of_all)
    for seed in range(3)
    for run, loss, made, of_all in (
      ('deepseek_moe', 3.0, None, None),
      ('unequal', 2.9, readings(seed), {'routed_width': [230 + _noise(seed)] * 3}),
    )
  ]
  found, decided = _analysed(unequal_experts, lines)
  assert decided == [HOLDS] * 3
  assert found['mean routed width − 224'].interval.mean == pytest.approx(6, abs=0.01)
  assert found['routed width, most − least, of domains'].interval.mean == pytest.approx(30)


def test_attention_share():
  copying = {'heads_1': 7.5, 'deepseek_moe': 6.0, 'heads_3': 4.0}
  lines = [
    _line(
      run,
      seed,
      3.0 + _noise(seed),
      measures={
        'recall': {
          'copying_after_other': [11.0 + seed],
          'copying': [value + seed + _noise(seed) * value],
          'lookup_after_other': [8.0 + seed],
          'lookup': [value + seed],
        }
      },
    )
    for run, value in copying.items()
    for seed in range(3)
  ]
  found, decided = _analysed(attention_share, lines)
  assert decided[:5] == [HOLDS] * 5
  assert found['copying gains: 3 heads − 2 heads'].interval.mean == pytest.approx(2.0, abs=0.01)
  assert found['copying gains: 2 heads'].interval.mean == pytest.approx(5.0, abs=0.01)
  assert found['lookup gains: 1 head − 2 heads'].interval.mean == pytest.approx(-1.5)
  assert found['copying gains: 3 heads − 2 heads'].in_words == (
    'copying gains 2.001 more with 3 heads than with 2 heads'
  )


def test_specialisation():
  made = lambda scale, seed: {
    'substituted': [0.3 * scale + _noise(seed), 0.1 * scale],
    'removed': [0.4, 0.6],
    **{name: [0.2 * scale + _noise(seed)] for name in ('domain', 'class', 'next_class')},
  }
  lines = [
    _line(run.name, seed, 3.0, measures={'specialisation': made(scale * (1 + 0.01 * seed), seed)})
    for run in specialisation.sweep()
    for scale in [1 + 0.5 * run.name.startswith('deepseek') + 0.1 * run.name.endswith('_40')]
    for seed in range(3)
  ]
  found, decided = _analysed(specialisation, lines)
  assert found['ratio: DeepSeekMoE − GShard'].interval.mean == pytest.approx(0.4 * 0.5, abs=0.01)
  assert decided[:5] == [HOLDS] * 5 and len(decided) == 13


def test_a_seed_that_misses_no_expert_has_no_ratio_and_has_not_diverged():
  made = lambda removed: {
    'substituted': [0.3],
    'removed': [removed],
    **{name: [0.2] for name in ('domain', 'class', 'next_class')},
  }
  lines = [
    _line(run.name, seed, 3.0, measures={'specialisation': made(removed)})
    for run in specialisation.sweep()
    for seed, removed in enumerate((0.6, 0.6, -0.1, None))
  ]
  found, _ = _analysed(specialisation, lines)
  assert found['ratio: GShard'].values == pytest.approx({0: 0.5, 1: 0.5, 3: math.nan}, nan_ok=True)
  assert found['ratio: GShard'].diverged == [3]


def test_what_suggested_the_claim_does_not_test_it():
  lines = [
    _line(run.name, seed, 3.0 - (run.name == 'bias') * (1.0 if seed == 0 else 0.1 + 0.001 * seed))
    for run in coarse_shared.sweep()
    for seed in range(6)
  ]
  found, decided = _analysed(coarse_shared, lines)
  claimed = found['1+1/15, bias − 1+1/15']
  assert sorted(claimed.values) == [1, 2, 3, 4, 5] and decided[0] == HOLDS
  assert claimed.interval.mean == pytest.approx(-0.1, abs=0.01)
