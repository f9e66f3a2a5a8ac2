"""Times decoding by the DeepSeekMoE proxy beside a dense model with 2.45 times its activated
parameters, the ratio of DeepSeek 7B to the 16B; beside itself through the stacks that training
scans, and with weights of few bits; and beside llama.cpp on the same weights, if `xllamacpp` is
installed.
"""

import contextlib
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import evaluation, llama_cpp
from experiments.benchmarks.timing import compare
from experiments.benchmarks.tokenizer import train_like_deepseek
from moe.accounting import account
from moe.config import FEW_BITS, Config
from moe.convert.to_gguf import FILE, to_gguf
from moe.data import builtin
from moe.data.tokenizers import Tokenizer, from_bytes
from moe.generation import layers, programs, weights
from moe.generation.programs import Prompt, Rows
from moe.generation.sampling import Drawing, Sampling, draw
from moe.inspection import Run
from moe.ops.routed_ffn import xla
from moe.quantize import quantized

# DeepSeek 7B's activated parameters over those of DeepSeekMoE 16B.
_DENSE = 2.45
_TOKENS, _PROMPT, _CONTEXT = 64, 512, 1024
# Bars of time ratios: 2.3 times the dense model's speed (Section 5.2.1 has 2.5); half the time
# through the stacks; a quarter more time than llama.cpp.
_OVER_DENSE, _OVER_STACKS, _OVER_LLAMA_CPP = 1 / 2.3, 0.5, 1.25


def suite(rounds: int) -> list[dict]:
  """Times the decoding of 1 and of 16 rows, and the prefill of a prompt."""
  tokenizer = from_bytes(train_like_deepseek(evaluation.corpus(), 4096))
  moe = evaluation.random_run(_config(tokenizer), tokenizer)
  dense = evaluation.random_run(dense_of(moe.config, _DENSE), tokenizer)
  name, rows = f'deepseek_moe ÷ dense × {_DENSE}', []
  for batch, bar in ((1, _OVER_DENSE), (16, None)):
    sides, tokens = (decode(moe, batch), decode(dense, batch)), batch * _TOKENS
    rows.append(compare(f'decode, {_rows(batch)}, {name}', *sides, rounds, tokens, bar))
  sides = prefill(moe), prefill(dense)
  rows.append(compare(f'prefill of {_PROMPT}, {name}', *sides, rounds, _PROMPT))
  sides, name = (decode(moe, 1), through_stacks(moe)), 'decode, 1 row, ÷ through the stacks'
  rows.append(compare(name, *sides, rounds, _TOKENS, _OVER_STACKS))
  for kind in FEW_BITS:
    params = quantized(moe.config, dict(moe.params), kind)
    sides = decode(dataclasses.replace(moe, params=params), 1), decode(moe, 1)
    rows.append(compare(f'decode, 1 row, {kind} ÷ float32', *sides, rounds, _TOKENS))
  return rows + _beside_llama_cpp(moe, rounds)


def dense_of(config: Config, times: float) -> Config:
  """A dense model of the same width and depth, with `times` times the activated parameters."""
  model = config.model
  wide = lambda d_ff: dataclasses.replace(
    config, model=dataclasses.replace(model, num_dense_layers=model.num_layers, d_ff=d_ff)
  )
  beside = account(wide(1)).active_params - 3 * model.d_model * model.num_layers
  left = times * account(config).active_params - beside
  return wide(round(left / (3 * model.d_model * model.num_layers)))


def decode(run: Run, rows: int) -> Callable[[], list[list[int]]]:
  """A function that decodes greedy tokens of so many rows, as `moe.generation.batch` does."""
  drawing, params = _drawing(run), weights.by_layer(run.config, run.params)
  cache = programs.empty(run.model, rows, programs.room_for(run.config, 2 * _TOKENS))
  step = lambda inputs, cache: programs.step(run.model, params, drawing, inputs, cache)
  return _one_by_one(step, cache, rows)


def through_stacks(run: Run) -> Callable[[], list[list[int]]]:
  """As `decode` of one row, but through the stacks that training scans and with experts computed as
  in training.
  """
  drawing, positions = _drawing(run), programs.room_for(run.config, 2 * _TOKENS)
  cache = layers.stacked(layers.empty_cache(run.config.model, 1, positions))

  @functools.partial(jax.jit, donate_argnums=2)
  def advance(params, rows, cache):
    inputs = rows.tokens_B[:, None], rows.positions_B[:, None], jnp.ones((1, 1), jnp.int32)
    hidden_B1D, _, cache = run.model.apply({'params': params}, *inputs, cache)
    logits_BV = layers.logits(run.model, params, hidden_B1D[:, 0])
    return draw(logits_BV, drawing, rows.numbers_B, rows.counts_B), cache

  def step(rows, cache):
    with mock.patch.object(xla, 'FEW', 0):
      return advance(run.params, rows, cache)

  return _one_by_one(step, cache, 1)


def _one_by_one(step, cache, rows):
  """A function that decodes token by token: each is chosen before the next begins. Every call
  starts at the same place in the cache.
  """
  numbers_B = np.arange(rows, dtype=np.int32)

  def generate():
    nonlocal cache
    chosen_B, said = numbers_B, []
    for count in range(_TOKENS):
      counts_B = np.full(rows, count + 1, np.int32)
      chosen_B, cache = step(Rows(chosen_B, _TOKENS + counts_B, numbers_B, counts_B), cache)
      chosen_B = np.asarray(chosen_B)
      said.append(chosen_B.tolist())
    return said

  return generate


def prefill(run: Run) -> Callable[[], None]:
  """A function that computes the first token after one prompt."""
  drawing, prompt = _drawing(run), Prompt(0, _prompt_ids(run))
  return lambda: jax.block_until_ready(programs.prefill(run.model, run.params, drawing, [prompt]))


def _beside_llama_cpp(run, rounds):
  if not llama_cpp.is_installed():
    print('xllamacpp is not installed: without that side', file=sys.stderr)
    return []
  name = 'deepseek_moe ÷ llama.cpp, float32'
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    workdir = evaluation.write_run(run, Path(folder) / 'run')
    to_gguf(workdir, Path(folder) / 'gguf')
    server = stack.enter_context(llama_cpp.opened(Path(folder) / 'gguf' / FILE, _CONTEXT))
    one, many = [run.tokenizer.bos_id], _prompt_ids(run)
    return [
      compare(
        f'decode, 1 row, {name}',
        decode(run, 1),
        lambda: server.time(one, _TOKENS),
        rounds,
        _TOKENS,
        _OVER_LLAMA_CPP,
      ),
      compare(
        f'prefill of {_PROMPT}, {name}', prefill(run), lambda: server.time(many, 1), rounds, _PROMPT
      ),
    ]


def _config(tokenizer: Tokenizer) -> Config:
  config = evaluation.config_of(tokenizer)
  return dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=_CONTEXT))


def _drawing(run):
  tokenizer = run.tokenizer
  return Drawing.of(Sampling(), tokenizer, run.config.model.vocab_size, tokenizer.eos_id, 0)


def _rows(count):
  return f'{count} row{"s" * (count > 1)}'


def _prompt_ids(run):
  document = max(builtin.documents(), key=lambda document: len(document.text))
  return run.tokenizer.encode(document.text)[:_PROMPT]
