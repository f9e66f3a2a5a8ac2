"""What training on other text has done to a run's weights: scores both runs on the held-out text of
both.

N tokens of a conversation.
"""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from moe.data.documents import HELD_OUT
from moe.data.store import PreparedData, open_held_out
from moe.evaluate import Evaluator
from moe.finetune.cost import cost
from moe.generate import Sampling, generate_tokens
from moe.inspection import Run
from moe.run import data_directory, load_run

# How many conversations of a domain are asked, in all and at once.
_ASKED, _TOGETHER = 256, 64


def measure(run: Run, data: PreparedData, start: str | os.PathLike) -> dict[str, object]:
  """`before`, the scores of the last checkpoint of the run in `start`, and `after`, those of `run`:

  `own`: held-out loss, nats a token, on the text of `run`; for conversations that of the replies;
  `start`: the same on the text of `start`;
  `answers`: if the own text is conversations, the share of first replies that greedy generation
  gives exactly, by domain; else None.

  And `trained_params`, how many of its parameters `run` trains.
  """
  origin = load_run(start)
  theirs = open_held_out(data_directory(origin.config, start), origin.tokenizer)
  on_own, on_start = Evaluator(run.config, data), Evaluator(origin.config, theirs)

  def of(params):
    return {
      'own': on_own(params).total.loss,
      'start': on_start(params).total.loss,
      'answers': _answers(dataclasses.replace(run, params=params), data)
      if run.config.data.format == 'chat'
      else None,
    }

  return {
    'before': of(origin.params),
    'after': of(run.params),
    'trained_params': cost(run.config).trained_params,
  }


def _answers(run, data):
  return {domain: _share_exact(run, data, domain) for domain in data.held_out_domains}


def _share_exact(run, data, domain):
  """The share of a domain's first replies that are generated exactly. They are compared as text,
  since other pieces may make the same text.
  """
  asked = list(_first_turns(data, domain, run.config.data.seq_len))
  longest = max((len(reply) for _, reply in asked), default=1)
  prompts, right = [prompt for prompt, _ in asked], 0
  answers = generate_tokens(run, prompts, longest, Sampling(), 0, _TOGETHER)
  for (_, reply), said in zip(asked, answers, strict=True):
    # The end of the turn is part of the reply: an answer that goes on is wrong.
    is_ended = said[-1:] == reply[-1:]
    right += is_ended and run.tokenizer.decode(said) == run.tokenizer.decode(reply)
  return right / max(len(asked), 1)


def _first_turns(data, domain, context) -> Iterator[tuple[list[int], list[int]]]:
  """(tokens before the first reply, its tokens with the end of the turn), for the first
  conversations of a domain that fit.
  """
  documents = data.documents(HELD_OUT, domain)
  for number in range(min(len(documents), _ASKED)):
    tokens_N, learnt_N = documents.conversation(number)
    begin = int(np.argmax(learnt_N))
    end = begin + int(np.argmin(np.append(learnt_N[begin:], False)))
    if end <= context:
      yield tokens_N[:begin].tolist(), tokens_N[begin:end].tolist()
