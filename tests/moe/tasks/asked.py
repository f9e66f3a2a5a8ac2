"""Runs for the tests of moe.tasks, and the true answers, by loops in float64."""

import json
from pathlib import Path

import numpy as np

from experiments.benchmarks.tokenizer import train_like_deepseek
from moe.data.packing import Batch
from moe.data.tokenizers import Tokenizer, from_bytes
from moe.inspection import Run
from tests import oracles
from tests.moe.inspection.opened import ONE_MOE_LAYER, run_of
from tests.moe.test_analysis import by_loops
from tests.oracles import exact

SENTENCES = [
  'the quick brown fox jumps over the lazy dog.',
  'an expert of one token is the gate of another.',
  '专家混合模型把每个词交给少数几个专家。',
  'smiles 😀😀 and tears 😢, all in one line',
]


def tokenizer(config: bytes = b'') -> Tokenizer:
  """Byte-level BPE with pieces of several words, Chinese characters and parts of emoji."""
  return from_bytes(train_like_deepseek(SENTENCES * 20, 390), config)


def asked_run(tokens: Tokenizer, mesh: dict | None = None, **overrides) -> Run:
  """A run with a dense layer and an MoE layer, and a context of 32 tokens."""
  sizes = {'data.seq_len': 32, 'evaluation.batch_size': 2}
  return run_of(tokens, mesh, **ONE_MOE_LAYER | sizes | overrides)


def logits(run: Run, ids) -> np.ndarray:
  """logits_LV, float64."""
  ids_L = np.array(ids)
  row = Batch(ids_L, ids_L, np.arange(len(ids_L)), np.ones_like(ids_L), ids_L)
  k = run.config.moe.experts_per_token
  hidden_LD, *_ = by_loops(run.config, run.params, row, 0, k, True)
  return hidden_LD @ exact(run.params['head'])


def score(run: Run, context, continuation) -> tuple[float, bool]:
  """(log-probability of `continuation` after `context`, whether it is the greedy one); both are
  token ids.
  """
  logits_LV = logits(run, [*context, *continuation][:-1])[len(context) - 1 :]
  total, greedy = 0.0, True
  for logits_V, target in zip(logits_LV, continuation, strict=True):
    total += logits_V[target] - oracles.log_sum_exp(logits_V)
    greedy &= int(np.argmax(logits_V)) == target
  return total, greedy


def write_rows(folder: Path, task: str, split: str, rows: list[dict]) -> Path:
  path = folder / task / f'{split}.jsonl'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), 'utf-8')
  return path
