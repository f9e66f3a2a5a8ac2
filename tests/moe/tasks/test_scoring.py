"""Log-probabilities of continuations against loops over tokens in float64."""

import dataclasses

import jax
import numpy as np
import pytest

from moe.inspection.programs import Model
from moe.tasks import scoring
from moe.tasks.scoring import Packed, Pair, Shared
from tests.moe.tasks.asked import asked_run, logits, score

pytestmark = pytest.mark.usefixtures('quick_compile')

LONG, LONGER, SHORT = list(range(3, 23)), [1, *range(40, 65)], [5, 6, 7]
CONTINUATIONS = [[9], [9, 10, 11], [100, 3, 5, 8, 2, 1], [12]]
PAIRS = [
  *(Pair(LONG, each) for each in CONTINUATIONS),
  *(Pair(SHORT, each) for each in CONTINUATIONS),  # too short to be shared
  *(Pair(LONGER, each) for each in ([7, 7], [8])),
  Pair(LONG[:-1], [4, 4, 4]),  # nothing shares it
  Pair([1], list(range(200, 232))),  # as long as the model reads
  Pair(LONG, []),
]


def parts(run):
  return Model(run.model, run.params, run.mesh, run.on_mesh)


@pytest.fixture(scope='module')
def scores(run):
  return scoring.score(parts(run), PAIRS, 64)


def test_scores_are_those_of_the_loops(run, scores):
  likeliest = logits(run, LONG)[-1].argmax()
  pairs = [*PAIRS[:-1], Pair(LONG, [int(likeliest)])]
  scores = [*scores[:-1], *scoring.score(parts(run), pairs[-1:], 64)]
  for pair, found in zip(pairs, scores, strict=True):
    total, is_greedy = score(run, *pair)
    np.testing.assert_allclose(found.log_probability, total, rtol=1e-5, atol=1e-5)
    assert found.is_greedy == is_greedy
  assert scores[-1].is_greedy


def test_of_no_token_the_probability_is_one(scores):
  assert scores[-1] == (0.0, True)


def test_a_context_is_computed_once(run, monkeypatch):
  """A shared context's tokens are in one row and its continuations in another. Pairs that share
  nothing are packed.
  """
  seen = []
  programs = {
    kind: lambda params, rows: seen.append(rows) or _nothing(rows) for kind in (Packed, Shared)
  }
  monkeypatch.setattr(scoring, '_programs', lambda *_: programs)
  scoring.score(parts(run), PAIRS, 1024)
  tokens = lambda batch: int((batch.segment_ids_BL > 0).sum())
  shared = [rows for rows in seen if isinstance(rows, Shared)]
  packed = [rows for rows in seen if isinstance(rows, Packed)]
  assert sum(tokens(rows.context) for rows in shared) == len(LONG) - 1 + len(LONGER) - 1
  assert sum(tokens(rows.batch) for rows in shared) == sum(map(len, CONTINUATIONS)) + 3
  alone = [pair for pair in PAIRS if pair.context not in (LONG, LONGER)]
  ours = sum(len(pair.context) + len(pair.continuation) - 1 for pair in alone)
  assert sum(tokens(rows.batch) for rows in packed) == ours
  assert len(packed) == 1


def _nothing(rows):
  zeros = np.zeros((64, 64), np.float32)
  return zeros, zeros > 1


def test_on_several_devices(scores, tokens):
  """The pairs have one context that is shared, and one that is not."""
  run = asked_run(tokens, mesh={'data': 1, 'fsdp': 4, 'tensor': 2})
  numbers = [0, 1, 2, 3, 10]
  again = scoring.score(parts(run), [PAIRS[number] for number in numbers], 64)
  for number, found in zip(numbers, again, strict=True):
    np.testing.assert_allclose(
      found.log_probability, scores[number].log_probability, rtol=1e-5, atol=1e-5
    )
    assert found.is_greedy == scores[number].is_greedy


def test_few_programs_serve_all_requests(run, monkeypatch):
  """Questions of every size share a few compiled shapes."""
  generator, shapes = np.random.default_rng(0), set()
  ids = lambda count: generator.integers(3, 300, count).tolist()
  pairs = []
  for context in map(ids, generator.integers(1, 3000, 400)):
    pairs += [Pair(context, ids(int(n))) for n in generator.integers(1, 60, 4)]
    pairs.append(Pair(ids(len(context)), ids(5)))
  config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, seq_len=4096))
  model = parts(run)._replace(model=run.model.clone(config=config))

  def program(params, rows):
    shapes.add((type(rows), *(x.shape for x in jax.tree.leaves(rows))))
    return tuple(np.zeros((len(rows.batch.tokens_BL), 1 << 13), dtype) for dtype in (float, bool))

  monkeypatch.setattr(scoring, '_programs', lambda *_: {Packed: program, Shared: program})
  scoring.score(model, pairs, 1 << 15)
  assert len(shapes) <= 16
