"""Compares scores of moe.tasks with the harness's Hugging Face backend on exported weights.

  python -m tests.moe.tasks.verify

Run it by hand, in an environment with torch and transformers; it takes some minutes. It compares
208 questions of four choices, 24 documents, some longer than the model reads, and 32 generated
answers, for a DeepSeekMoE and a dense model with random weights. It writes
experiments/results/evaluation.json.
"""

import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['HF_HUB_OFFLINE'] = '1'
# Compiles faster, and computes the same.
os.environ['XLA_FLAGS'] = '--xla_backend_optimization_level=0'

import numpy as np
from lm_eval.api.instance import Instance

from experiments.benchmarks import evaluation, hugging_face
from experiments.benchmarks.tokenizer import train_like_deepseek
from moe.data import builtin
from moe.data.tokenizers import from_bytes
from moe.inspection import Run
from moe.model import Transformer
from moe.storage import provenance
from moe.tasks.harness import Harness
from tests.small import small_config, small_params

RESULTS = Path(__file__).parents[3] / 'experiments/results/evaluation.json'
QUESTIONS, DOCUMENTS, ANSWERS = 208, 24, 32
# Adds Chinese and emoji to the corpus's English and code.
MORE = '专家混合模型把每个词交给少数几个专家。😀 结果由门控加权。'
SHAPE = {
  **{'model.num_layers': 4, 'model.d_model': 128, 'model.num_heads': 4, 'model.num_kv_heads': 2},
  **{'model.head_dim': 32, 'model.num_dense_layers': 1, 'model.d_ff': 384, 'data.seq_len': 256},
  **{'moe.num_experts': 16, 'moe.experts_per_token': 4, 'moe.num_shared_experts': 2},
  **{'moe.d_expert': 64, 'evaluation.batch_size': 32, 'train.loss_chunk': 512},
  # Compiles fastest.
  **{'ops.implementation': 'reference'},
}
MODELS = {
  'deepseek': {},
  'llama': {'model.num_dense_layers': 4, 'moe.num_experts': 0, 'moe.experts_per_token': 0}
  | {'moe.num_shared_experts': 0, 'moe.d_expert': 0},
}


def main():
  texts = [f'{document.text}\n{MORE}' for document, _ in zip(builtin.documents(), range(160))]
  tokenizer = from_bytes(train_like_deepseek(texts, 2000))
  found = {name: check(tokenizer, texts, overrides) for name, overrides in MODELS.items()}
  versions = {
    name: importlib.metadata.version(name) for name in ('lm_eval', 'torch', 'transformers', 'jax')
  }
  commit, dirty = provenance.commit()
  told = {'commit': commit, 'dirty': dirty, 'cpu': provenance.cpu(), **versions, 'models': found}
  RESULTS.write_text(json.dumps(told, indent=2) + '\n')
  print(json.dumps(told, indent=2))
  bad = [name for name, each in found.items() if each['largest_difference'] > 1e-4]
  return f'differ by more than 1e-4: {bad}' if bad else 0


def check(tokenizer, texts, overrides) -> dict:
  config = small_config(**{'model.vocab_size': tokenizer.vocab_size, **SHAPE, **overrides})
  run = Run(Transformer(config), small_params(config, std=0.08), tokenizer, config, 1)
  with tempfile.TemporaryDirectory() as folder:
    exported = evaluation.export(run, Path(folder))
    theirs, whole = (
      hugging_face.backend(exported, config.data.seq_len, 8, add_bos) for add_bos in (True, False)
    )
  ours = Harness(run)
  asked = requests('loglikelihood', questions(texts))
  pairs = list(zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True))
  documents = requests('loglikelihood_rolling', [(text,) for text in documents_of(texts)])
  rolled = list(
    zip(ours.loglikelihood_rolling(documents), whole.loglikelihood_rolling(documents), strict=True)
  )
  prompts = [
    (text[:120], {'until': ['\n\n', '。'], 'max_gen_toks': 24}) for text in texts[:ANSWERS]
  ]
  prompts = requests('generate_until', prompts)
  answers = list(zip(ours.generate_until(prompts), theirs.generate_until(prompts), strict=True))
  sums = [(a, b) for (a, _), (b, _) in pairs]
  return {
    'questions': QUESTIONS,
    'requests': len(pairs),
    'largest_difference': max(abs(a - b) for a, b in sums),
    'mean_log_probability': float(np.mean([a for a, _ in sums])),
    'greedy_flags_that_differ': sum(a[1] != b[1] for a, b in pairs),
    'choices_that_differ': choices_that_differ(sums),
    'contexts_cut': dict(ours.cut),
    'documents': len(rolled),
    'largest_relative_difference_of_documents': max(abs(a / b - 1) for a, b in rolled),
    'answers': len(answers),
    'answers_that_differ': sum(a != b for a, b in answers),
  }


def requests(kind, asked):
  return [Instance(kind, {}, each, i, metadata=('asked', i, 1)) for i, each in enumerate(asked)]


def questions(texts):
  """(context, choice) pairs. Contexts have 100 to 700 characters; the last 8 have up to 1200, more
  than the model reads.
  """
  generator, asked = np.random.default_rng(0), []
  for number in range(QUESTIONS):
    text = texts[number % len(texts)]
    begin = int(generator.integers(0, max(len(text) - 1200, 1)))
    length = int(generator.integers(100, 700)) if number < QUESTIONS - 8 else 1200
    context = text[begin : begin + length]
    for choice in range(4):
      other = texts[(7 * number + 31 * choice) % len(texts)]
      at = int(generator.integers(0, max(len(other) - 80, 1)))
      asked.append(
        (context, ' ' + other[at : at + int(generator.integers(2, 60))].strip() + MORE[:3])
      )
  return asked


def documents_of(texts):
  return [text[: 200 + 100 * number] for number, text in enumerate(texts[:DOCUMENTS])]


def choices_that_differ(sums):
  best = lambda side: [
    int(np.argmax([each[side] for each in sums[begin : begin + 4]]))
    for begin in range(0, len(sums), 4)
  ]
  return sum(a != b for a, b in zip(best(0), best(1), strict=True))


if __name__ == '__main__':
  sys.exit(main())
