"""Requests of the harness, timed beside launch.evaluate on the same tokens, and beside the
harness's own backend (Hugging Face) on the same weights, if torch and transformers are installed.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from experiments import proxy
from experiments.benchmarks import hugging_face
from experiments.benchmarks.timing import compare
from experiments.benchmarks.tokenizer import train_like_deepseek
from moe.checkpoint import Checkpointer
from moe.config import Config, from_config_dict
from moe.convert.to_hf import to_hf
from moe.data import builtin, given
from moe.data.tokenizers import Tokenizer, from_bytes
from moe.evaluate import Evaluator
from moe.inspection import Run
from moe.model import Transformer, init_params
from moe.tasks.suite import start_harness
from moe.train_step import init_state

_QUESTIONS, _CHOICES = 48, 4
# How much of the built-in corpus is read; the tokenizer is trained on the same text.
_CHARACTERS = 400_000
# Bars of time ratios: at least 0.8 of launch.evaluate's tokens a second; as fast as the other
# backend.
_BARS = 1 / 0.8, 1.0


def suite(rounds: int) -> list[dict]:
  """Times the scoring of whole documents, and of questions whose choices share a context."""
  start_harness()
  from moe.tasks.harness import Harness

  texts = corpus()
  tokenizer = from_bytes(train_like_deepseek(texts, 4096))
  run = random_run(config_of(tokenizer), tokenizer)
  rows = []
  for name, kind, asked in (
    ('documents', 'loglikelihood_rolling', _documents(run, texts)),
    ('choices', 'loglikelihood', _questions(run, texts)),
  ):
    requests = _requests(kind, asked)
    tokens = sum(len(tokenizer.encode(''.join(each))) for each in asked)
    ours = lambda kind=kind, requests=requests: getattr(Harness(run), kind)(requests)
    whole = _evaluator(run, [''.join(each) for each in asked])
    rows.append(compare(f'{name} ÷ launch.evaluate', ours, whole, rounds, tokens, _BARS[0]))
    theirs = _hugging_face(run, kind, requests)
    if theirs:
      title = f"{name} ÷ the harness's Hugging Face backend"
      rows.append(compare(title, ours, theirs, rounds, tokens, _BARS[1]))
    else:
      print('torch or transformers is not installed: without that side', file=sys.stderr)
  return rows


def config_of(tokenizer: Tokenizer) -> Config:
  """The DeepSeekMoE proxy's config, in float32, for this tokenizer."""
  config = proxy.get_config('deepseek_moe')
  config.update_from_flattened_dict(
    {'model.dtype': 'float32', 'model.vocab_size': tokenizer.vocab_size, 'data.vocab_size': 0}
  )
  return from_config_dict(config)


def export(run: Run, folder: Path) -> Path:
  """Writes the run for Hugging Face's tools, as launch.convert does, and returns that folder."""
  to_hf(write_run(run, folder / 'run'), folder / 'hf')
  return folder / 'hf'


def write_run(run: Run, workdir: Path) -> Path:
  """Writes a run's folder with a checkpoint of these weights at its step."""
  workdir.mkdir()
  (workdir / 'config.json').write_text(json.dumps(run.config.to_dict()))
  shapes = jax.eval_shape(lambda: init_state(run.config))
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes).replace(params=run.params)
  with contextlib.closing(Checkpointer(workdir, run.config, run.tokenizer, {})) as checkpointer:
    checkpointer.save(run.step, state, None, None)
    checkpointer.wait(run.step)
  return workdir


def corpus() -> list[str]:
  """Texts from the start of the built-in corpus, about `_CHARACTERS` together."""
  texts, size = [], 0
  for document in builtin.documents():
    texts.append(document.text)
    size += len(document.text)
    if size >= _CHARACTERS:
      return texts
  return texts


def random_run(config: Config, tokenizer: Tokenizer) -> Run:
  """A run with initial parameters, the same each time."""
  params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
  return Run(Transformer(config), params, tokenizer, config, 1)


def _documents(run, texts):
  """A third more documents than there are questions, each nearly as long as a context."""
  length = run.config.data.seq_len - 8
  return [(text,) for text in _stretches(run, texts, length)[: 4 * _QUESTIONS // 3]]


def _questions(run, texts):
  """(context, choice) pairs. A context is half as long as the model reads, a choice a tenth."""
  length = run.config.data.seq_len
  contexts = _stretches(run, texts, length // 2)[:_QUESTIONS]
  choices = _stretches(run, texts[::-1], length // 10)
  return [
    (context, f' {choices[_CHOICES * number + choice]}')
    for number, context in enumerate(contexts)
    for choice in range(_CHOICES)
  ]


def _stretches(run, texts, length):
  """Pieces of texts, of about `length` tokens each, without white space at their ends."""
  found = []
  for text in texts:
    ids = run.tokenizer.encode(text)
    parts = (ids[begin : begin + length] for begin in range(0, len(ids) - length, length))
    found += filter(None, (run.tokenizer.decode(part).strip('� \n') for part in parts))
  return found


def _requests(kind, asked):
  from lm_eval.api.instance import Instance

  return [Instance(kind, {}, each, i, metadata=('asked', i, 1)) for i, each in enumerate(asked)]


def _evaluator(run, texts):
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / 'texts.jsonl'
    path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts), 'utf-8')
    data = given.open_given(f'asked={path}', run.config.data, run.tokenizer)
  evaluator = Evaluator(run.config, data)
  return lambda: evaluator(run.params)


def _hugging_face(run, kind, requests):
  """A function that asks the other backend, or None if that is not installed."""
  if not hugging_face.is_installed():
    return None
  with tempfile.TemporaryDirectory() as folder:
    model = hugging_face.backend(
      export(run, Path(folder)),
      run.config.data.seq_len,
      run.config.evaluation.batch_size,
      add_bos=kind == 'loglikelihood',
    )
  return lambda: getattr(model, kind)(requests, disable_tqdm=True)
