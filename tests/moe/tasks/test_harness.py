"""The three kinds of requests of the harness against loops over tokens in float64."""

import json

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from moe.errors import UserError
from moe.tasks.harness import Harness
from tests.moe.tasks import asked
from tests.moe.tasks.asked import SENTENCES, logits, score

pytestmark = pytest.mark.usefixtures('quick_compile')

CONTEXT = 'the quick brown fox jumps over the lazy dog. an'
PAIRS = [
  *((CONTEXT, each) for each in (' expert', ' expert of one', ' token', '😀')),
  ('', 'the lazy dog'),
  ('the quick ', 'brown'),  # the space goes with the continuation
  ('the qui', 'ck brown'),  # cut within a piece
  ('专家混合', '模型把每个词'),
  ('smiles \n\n', '😢 and tears'),
  (' ', 'gate'),
  (f'{CONTEXT} {CONTEXT} {CONTEXT} {CONTEXT} 专家', ' of one token'),  # longer than the context
]


def requests(kind, *arguments):
  return [
    Instance(kind, {}, each, number, metadata=('task', number, 1))
    for number, each in enumerate(arguments)
  ]


def ids_of(run, context, continuation):
  """(context ids, continuation ids), as the harness defines them. White space at the context's end
  goes to the continuation. The context is encoded alone. The continuation's ids are those of the
  whole text after as many as the context has; if there are none, it is encoded alone.
  """
  cut = len(context.rstrip())
  context, continuation = context[:cut], context[cut:] + continuation
  whole = [run.tokenizer.bos_id, *run.tokenizer.encode(context + continuation)]
  before = [run.tokenizer.bos_id, *run.tokenizer.encode(context)]
  return before, whole[len(before) :] or run.tokenizer.encode(continuation)


def test_loglikelihood(run):
  harness, length = Harness(run), run.config.data.seq_len
  found = harness.loglikelihood(requests('loglikelihood', *PAIRS))
  cut = 0
  for pair, (total, is_greedy) in zip(PAIRS, found, strict=True):
    context, continuation = ids_of(run, *pair)
    assert continuation
    most = length + 1 - len(continuation)
    cut += len(context) > most
    truth, greedy = score(run, context[-most:], continuation)
    assert total == pytest.approx(truth, rel=1e-5, abs=1e-4) and is_greedy == greedy, pair
  assert cut == 1 and harness.cut == {'task': 1}


def test_a_continuation_that_the_model_cannot_read_is_refused(run):
  with pytest.raises(UserError, match=r'data.seq_len=32'):
    Harness(run).loglikelihood(requests('loglikelihood', ('one', 'tears 😢😀 ' * 30)))


def test_rolling_scores_every_token_once(run):
  """Windows are those of the harness: full windows follow each other with one token of context, and
  the last has as much context as the model reads.
  """
  texts = ['an expert', '专家 ' * 40 + ' 😀', ' '.join(SENTENCES), '']
  found = Harness(run).loglikelihood_rolling(requests('rolling', *((text,) for text in texts)))
  length = run.config.data.seq_len
  for text, total in zip(texts, found, strict=True):
    ids, truth = run.tokenizer.encode(text), 0.0
    for begin in range(0, len(ids), length):
      part = ids[begin : begin + length]
      before = [run.tokenizer.bos_id, *ids[:begin]]
      truth += score(run, before[-(length + 1 - len(part)) :], part)[0]
    assert total == pytest.approx(truth, rel=1e-5, abs=1e-4)
  assert found[-1] == 0


def greedy(run, ids, count):
  """Token ids of the greedy continuation among text pieces, by loops, up to the end token."""
  allowed = np.flatnonzero(run.tokenizer.is_text).tolist() + [run.tokenizer.eos_id]
  new = []
  while len(new) < count and (not new or new[-1] != run.tokenizer.eos_id):
    logits_V = logits(run, [*ids, *new])[-1]
    new.append(max(allowed, key=lambda i: logits_V[i]))
  return new[:-1] if new[-1] == run.tokenizer.eos_id else new


def test_generation_ends_at_the_first_stop_string(run):
  prompts, tokenizer = ['the quick brown', '专家', 'smiles 😀'], run.tokenizer
  ids = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
  new = [greedy(run, each, 10) for each in ids]
  whole = [
    tokenizer.decode([*a, *b])[len(tokenizer.decode(a)) :] for a, b in zip(ids, new, strict=True)
  ]
  # The stop string lies within the answer, across the border of two of its tokens if it has them.
  middle = len(tokenizer.decode([*ids[0], *new[0][:5]])) - len(tokenizer.decode(ids[0]))
  stop = whole[0][middle - 1 : middle + 1]
  until = [stop, '\n\nnever']
  asks = [{'until': until, 'max_gen_toks': 10, 'do_sample': False}] * 2
  last = {'until': [], 'max_gen_toks': 3}
  found = Harness(run).generate_until(requests('x', *zip(prompts, [*asks, last], strict=True)))
  assert found[:2] == [text.split(stop)[0] for text in whole[:2]]
  assert whole[2].startswith(found[2])
  assert found[2] == tokenizer.decode([*ids[2], *new[2][:3]])[len(tokenizer.decode(ids[2])) :]
  assert stop in whole[0] and found[0] != whole[0]


def test_a_prompt_leaves_room_for_its_answer(run):
  harness = Harness(run)
  long = f'{CONTEXT} {CONTEXT} {CONTEXT} {CONTEXT}'
  (found,) = harness.generate_until(requests('x', (long, {'until': [], 'max_gen_toks': 4})))
  ids = [run.tokenizer.bos_id, *run.tokenizer.encode(long)][-28:]
  new = greedy(run, ids, 4)
  assert found == run.tokenizer.decode([*ids, *new])[len(run.tokenizer.decode(ids)) :]
  assert harness.cut == {'task': 1}


TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}"
  "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def test_the_chat_template_is_the_tokenizers_own(run):
  with pytest.raises(UserError, match=r'no chat_template in a tokenizer_config.json'):
    Harness(run, templated=True)
  tokens = asked.tokenizer(json.dumps({'chat_template': TEMPLATE}).encode())
  harness = Harness(asked.asked_run(tokens), templated=True)
  text = harness.apply_chat_template([{'role': 'user', 'content': '专家?'}])
  bos, eos = tokens.pieces[tokens.bos_id], tokens.pieces[tokens.eos_id]
  assert text == f'{bos}user: 专家?{eos}assistant:'
  wanted = [
    *(tokens.bos_id, *tokens.encode('user: 专家?')),
    *(tokens.eos_id, *tokens.encode('assistant:')),
  ]
  assert harness.tok_encode(text) == wanted
  begun = [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'so'}]
  assert harness.apply_chat_template(begun, False) == f'{bos}user: x{eos}assistant:so'
  # In plain text, a control piece's spelling is not read as that piece.
  assert tokens.eos_id not in Harness(asked.asked_run(tokens)).tok_encode(text)
