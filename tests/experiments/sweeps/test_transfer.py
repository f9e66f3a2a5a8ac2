"""The losses of two runs on the held-out text of both, and the share of exactly right replies."""

import dataclasses

import jax
import pytest

from experiments.sweeps import transfer
from moe.data.documents import HELD_OUT
from moe.data.prepare import prepare
from moe.model import Transformer
from moe.run import Run
from tests.moe.data.chat.helpers import write_chats
from tests.moe.inspection.opened import corpus_config, run_of
from tests.small import small_params


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """(a run on conversations, their data, the run on text that it started from, that text)."""
  folder = tmp_path_factory.mktemp('transfer')
  config = corpus_config(folder)
  text = prepare(config, folder / 'text')
  chats = dataclasses.replace(
    config.data, format='chat', sources=write_chats(folder / 'chats'), seq_len=64
  )
  chat_config = dataclasses.replace(config, data=chats)
  data = prepare(chat_config, folder / 'chat', text.tokenizer)
  origin = dataclasses.replace(run_of(text.tokenizer), config=config)
  params = jax.tree.map(lambda x: 1.5 * x, small_params(config))
  tuned = Run(Transformer(chat_config), params, text.tokenizer, chat_config, 9)
  return tuned, data, origin, text


@pytest.fixture
def measured(runs, monkeypatch):
  tuned, data, origin, text = runs
  monkeypatch.setattr(transfer, 'load_run', lambda start: origin)
  monkeypatch.setattr(transfer, 'open_held_out', lambda folder, tokenizer: text)
  return lambda: transfer.measure(tuned, data, 'start')


def test_losses_are_of_each_runs_weights_on_each_text(runs, measured, monkeypatch):
  tuned, data, origin, text = runs
  monkeypatch.setattr(transfer, '_answers', lambda run, data: None)
  found = measured()
  on = lambda run, what: run.evaluate(what).total.loss
  assert found['after']['own'] == on(tuned, data) != on(origin, text)
  assert found['before']['start'] == on(origin, text)
  assert found['before']['own'] == on(dataclasses.replace(tuned, params=origin.params), data)
  assert found['after']['start'] == on(dataclasses.replace(origin, params=tuned.params), text)


def test_a_reply_is_right_if_it_says_the_same_and_ends(runs, monkeypatch):
  """Every second answer is the reply itself; the others lack its end token or go on past it."""
  tuned, data, _, _ = runs
  eos, context = tuned.tokenizer.eos_id, tuned.config.data.seq_len
  said, expected = {}, {}
  for domain in data.held_out_domains:
    documents, fitting = data.documents(HELD_OUT, domain), 0
    for tokens_N, learnt_N in map(documents.conversation, range(len(documents))):
      tokens, begin = tokens_N.tolist(), learnt_N.tolist().index(True)
      end = tokens.index(eos, begin) + 1
      reply = tokens[begin:end]
      answers = reply, reply[:-1], reply, [*reply[:-1], reply[0], eos]
      said[tuple(tokens[:begin])] = answers[fitting % 4]
      fitting += end <= context
    expected[domain] = (fitting + 1) // 2 / fitting
    assert fitting > 2

  def answer(run, prompts, longest, sampling, seed, rows):
    del run, longest, sampling, seed, rows
    return [list(said[tuple(prompt)]) for prompt in prompts]

  monkeypatch.setattr(transfer, 'generate_tokens', answer)
  assert transfer._answers(tuned, data) == expected
