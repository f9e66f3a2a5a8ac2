"""A training step of the 2B and decoding by a model like the 16B, of as many layers as the device
has memory for.
"""

import dataclasses
import statistics
import time
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np

from experiments.benchmarks.device import clock
from experiments.benchmarks.device.kept import kept
from experiments.benchmarks.device.records import rates, record, times
from experiments.benchmarks.device.sizes import Sizes
from experiments.benchmarks.train_step import words
from moe.accounting import account, count_params
from moe.config import Config
from moe.generate import Sampling, generate_tokens
from moe.model import Transformer, init_params
from moe.optimizer import hyperparameters
from moe.train_step import init_state, make_train_step

# Bytes a parameter takes. Trained: itself, its gradient, two moments and a temporary copy, float32.
_TRAINED, _DECODED = 20, 6


class Decoder(NamedTuple):
  """What generation takes."""

  model: Transformer
  params: dict
  tokenizer: SimpleNamespace
  config: Config


def train_records(sizes: Sizes, rounds: int) -> list[dict]:
  """The record of training steps, with real and with balanced routing by turns."""
  return kept('train', lambda: _first_that_fits(sizes.train, _TRAINED, _train, rounds))


def decode_records(sizes: Sizes, batch: int, rounds: int) -> list[dict]:
  """The record of one more token for each of `batch` prompts: the time that `sizes.new` tokens take
  longer than one, divided by the tokens in between.
  """
  run = kept('decode', lambda: _first_that_fits(sizes.decode, _DECODED, _decoder, sizes))
  config, prompts = run.config, _prompts(run.config, batch, sizes.prompt)

  def seconds(new):
    began = time.perf_counter()
    said = generate_tokens(run, prompts, new, Sampling(), 0, batch)
    return time.perf_counter() - began, max(map(len, said))

  seconds(1), seconds(sizes.new)  # compiles, untimed
  spent = []
  for _ in range(rounds):
    (one, first), (many, last) = seconds(1), seconds(sizes.new)
    spent.append((many - one) / (last - first))
  found = times(spent)
  data = dataclasses.replace(config.data, seq_len=sizes.prompt + sizes.new)
  of_token = account(dataclasses.replace(config, data=data)).forward_flops_per_token
  name = f'decode {config.name}, {config.model.num_layers} layers, batch {batch}'
  return [
    record(
      name,
      **found,
      tokens_per_second=batch / statistics.median(spent),
      **rates(found['ms'], batch * of_token, _read(config, run.params, batch)),
    )
  ]


def _first_that_fits(config, bytes_each, make, *arguments):
  """make(config, …) with the most layers that fit on the device."""
  candidates = _cut(config, bytes_each)
  for fewer in candidates:
    try:
      return make(fewer, *arguments)
    except Exception as error:
      if 'RESOURCE_EXHAUSTED' not in str(error) or fewer is candidates[-1]:
        raise


def _cut(config: Config, bytes_each: int) -> list[Config]:
  """The config with the most layers that seem to fit, then with two thirds of them, and so on down
  to the dense layers and one more.
  """

  def of(layers):
    model = dataclasses.replace(config.model, num_layers=layers)
    return dataclasses.replace(config, model=model)

  limit = (jax.devices()[0].memory_stats() or {}).get('bytes_limit', float('inf'))
  most, least = config.model.num_layers, config.model.num_dense_layers + 1
  while most > least and account(of(most)).total_params * bytes_each > limit:
    most -= 1
  numbers = [most]
  while numbers[-1] > least:
    numbers.append(max(least, numbers[-1] * 2 // 3))
  return [of(layers) for layers in numbers]


def _train(config, rounds):
  balanced = dataclasses.replace(
    config, ops=dataclasses.replace(config.ops, force_balanced_routing=True)
  )
  state = jax.jit(lambda: init_state(config))()
  batch, numbers = jax.device_put((words(config), hyperparameters(config)))
  steps = [
    clock.compiled(make_train_step(each), state, batch, numbers, donated=(0,))[0]
    for each in (config, balanced)
  ]
  metrics = {}

  def run(step):
    nonlocal state, metrics
    state, metrics = step(state, batch, numbers)
    return metrics

  vio = float(run(steps[0])['max_vio_N'].mean())
  model, data = config.model, config.data
  name = (
    f'train step {config.name}, {model.num_layers} layers, {data.batch_size} × {data.seq_len} '
    f'tokens, {model.dtype} ÷ balanced routing'
  )
  tokens = data.batch_size * data.seq_len
  sides = ((lambda step=step: run(step)) for step in steps)
  row = clock.compare(name, *sides, rounds, tokens)
  flops = account(config).train_flops_per_token * tokens
  return [record(**row, max_vio=vio, **rates(row['ms'], flops, 0, model.dtype))]


def _decoder(config, sizes):
  params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
  vocab_size = config.model.vocab_size
  tokenizer = SimpleNamespace(eos_id=0, vocab_size=vocab_size, is_text=np.ones(vocab_size, bool))
  run = Decoder(Transformer(config), params, tokenizer, config)
  # Fails here if it does not fit.
  prompts = _prompts(config, max(sizes.batches), sizes.prompt)
  generate_tokens(run, prompts, sizes.new, Sampling(), 0, len(prompts))
  return run


def _prompts(config, batch, length):
  ids_BP = np.random.default_rng(0).integers(1, config.model.vocab_size, (batch, length))
  return ids_BP.tolist()


def _read(config, params, batch):
  """Bytes of the parameters that one step reads: all but the embedding, and of the experts only
  those that `batch` tokens choose under even routing.
  """
  counted, moe = count_params(config), config.moe
  e, k = moe.num_experts, moe.experts_per_token
  unchosen = e * (1 - k / e) ** batch
  idle = counted['idle experts'] / (e - k) * unchosen
  needed = account(config).total_params - counted['embedding'] - idle
  return needed * jax.tree.leaves(params)[0].dtype.itemsize
