"""Sampling: the cache against recomputing everything, the choice of a token against a loop,
and where completions stop.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.errors import UserError
from moe.generate import Sampling, generate, generate_tokens, only_generating, stream_tokens
from moe.generation import programs, weights
from moe.generation.sampling import choose
from moe.model import Transformer
from moe.ops.implementation import compiling_for
from moe.run import Run
from tests import oracles
from tests.moe.ops.backends import TPU
from tests.oracles import exact
from tests.small import small_config, small_params

pytestmark = pytest.mark.usefixtures('quick_compile')

CONTEXT, VOCAB = 12, 32
GREEDY = Sampling()
CONFIGS = {
  'dense_first_gqa': {
    'model.num_dense_layers': 1,
    'model.d_ff': 12,
    'model.num_layers': 2,
    'model.num_kv_heads': 1,
  },
  'unequal': {'moe.wide_experts': 2, 'moe.gate_mass': 0.9, 'moe.experts_per_token': 3},
  'hash': {'moe.router': 'hash', 'moe.num_shared_experts': 0, 'moe.experts_per_token': 1},
}


class Letters:
  """A tokenizer of 26 letters; the model has 32 rows, of which the last four are padding."""

  bos_id, eos_id, vocab_size = 26, 27, 28
  is_text = np.arange(28) < 26

  def encode(self, text):
    return [ord(letter) - ord('a') for letter in text]

  def decode(self, ids):
    return ''.join(chr(ord('a') + i) for i in ids)


class EndsOn(Letters):
  """Letters with another end token."""

  def __init__(self, eos_id):
    self.eos_id = eos_id


def _run(name='dense_first_gqa', seed=0, tokenizer=None):
  config = small_config(**CONFIGS[name])
  return Run(
    Transformer(config), small_params(config, seed, std=0.5), tokenizer or Letters(), config, step=0
  )


@functools.partial(jax.jit, static_argnums=0)
def _next(config, params, tokens_BL, lengths_B):
  """The logits after each row's first `lengths_B` tokens, without a cache."""
  positions_L = jnp.arange(CONTEXT)
  real_BL = (positions_L[None] < lengths_B[:, None]).astype(jnp.int32)
  positions_BL = jnp.broadcast_to(positions_L, tokens_BL.shape)
  model = Transformer(config)
  hidden_BLD = model.apply({'params': params}, tokens_BL, positions_BL, real_BL)[0]
  hidden_BD = hidden_BLD[jnp.arange(len(lengths_B)), lengths_B - 1]
  logits_BV = model.apply({'params': params}, hidden_BD, method='logits')
  return logits_BV


def _recomputed(run, prompt_ids, max_new):
  """Greedy decoding by running the whole sequence for every token."""
  rows = [list(ids) for ids in prompt_ids]
  new, ended = [[] for _ in rows], [False] * len(rows)
  for _ in range(max_new):
    tokens_BL = np.zeros((len(rows), CONTEXT), np.int32)
    for padded, row in zip(tokens_BL, rows):
      padded[: len(row[:CONTEXT])] = row[:CONTEXT]
    lengths_B = np.array([min(len(row), CONTEXT) for row in rows], np.int32)
    logits_BV = np.array(_next(run.config, run.params, tokens_BL, lengths_B))
    logits_BV[:, [Letters.bos_id, *range(28, VOCAB)]] = -np.inf
    for b, row in enumerate(rows):
      if ended[b] or len(row) > CONTEXT:
        continue
      token = int(logits_BV[b].argmax())
      row.append(token)
      new[b].append(token)
      ended[b] = token == run.tokenizer.eos_id
  return new


PROMPTS = ['', 'abc', 'q', 'hello', 'zyxwvutsrqp']  # the last leaves room for one token


@pytest.mark.parametrize('name', CONFIGS)
def test_greedy_with_the_cache_equals_recomputing(name):
  different = set()
  for seed in range(4):
    run = _run(name, seed)
    prompt_ids = [[Letters.bos_id, *run.tokenizer.encode(prompt)] for prompt in PROMPTS]
    computed = generate_tokens(run, prompt_ids, 20, GREEDY, seed=0, rows=2)
    assert computed == _recomputed(run, prompt_ids, 20)
    different |= {token for row in computed for token in row}
  assert len(different) > 10  # not the same token for ever


def test_what_is_used_in_float32_stays_so_on_an_accelerator():
  config = small_config(**{'moe.shared_gate': True, 'model.dtype': 'bfloat16'})
  with compiling_for('gpu', interpret=True):
    used = weights.as_used(config, small_params(config, 0))
  leaves = jax.tree_util.tree_leaves_with_path(used)
  exact = {path[-1].key for path, w in leaves if w.dtype == jnp.float32}
  assert exact == {'shared_gate', 'scale'} | {'experts'}  # the router's
  assert used['moe_blocks']['moe']['experts']['gate'].dtype == jnp.bfloat16


def test_weights_in_bfloat16_are_read_where_they_lie():
  """Experts' weights are passed as bits where the op takes them, and the tokens equal those of
  recomputing the whole sequence.
  """
  run = _run(seed=2)
  params = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), run.params)
  run = dataclasses.replace(run, params=params)
  gate_NEDF = params['moe_blocks']['moe']['experts']['gate']
  layer = weights.by_layer(run.config, params)['moe_blocks'][-1]
  gate_EDF = layer['moe']['experts']['gate']
  assert gate_EDF.dtype == jnp.uint16 and layer['attention']['key'].dtype == jnp.bfloat16
  assert (np.asarray(gate_EDF).view(jnp.bfloat16) == np.asarray(gate_NEDF[-1])).all()
  reference = small_config(**CONFIGS['dense_first_gqa'], **{'ops.implementation': 'reference'})
  same = weights.by_layer(reference, params)['moe_blocks'][-1]['moe']['experts']['gate']
  assert same.dtype == jnp.bfloat16
  prompt_ids = [[Letters.bos_id, *run.tokenizer.encode(prompt)] for prompt in PROMPTS]
  found = generate_tokens(run, prompt_ids, 20, GREEDY, seed=0, rows=2)
  assert found == _recomputed(run, prompt_ids, 20)


@pytest.mark.parametrize(
  ('platform', 'interpret'), [('gpu', True), ('tpu', TPU)], ids=['gpu', 'tpu']
)
def test_accelerators_go_through_layers_in_place(platform, interpret, monkeypatch):
  """The kernels, interpreted, read experts from the stack of all layers. Prompts go into the
  existing cache, two at a time, the longest in two pieces.
  """
  run = _run(seed=3)
  prompt_ids = [[Letters.bos_id, *run.tokenizer.encode(prompt)] for prompt in PROMPTS]
  for name, value in (('_LEAST_PIECE', 4), ('MOST_PIECE', 8), ('_MOST_TOKENS', 16)):
    monkeypatch.setattr(programs, name, value)
  with compiling_for(platform, interpret):
    found = generate_tokens(run, prompt_ids, 4, GREEDY, seed=0, rows=3)
  assert found == _recomputed(run, prompt_ids, 4)


def test_a_run_that_only_generates_keeps_no_stacks():
  """It keeps only the experts' stacks, which the kernels read in place."""
  run = _run(seed=3)
  run = dataclasses.replace(run, params=jax.tree.map(jnp.array, run.params))
  assert only_generating(run) is run  # on a CPU layers are views
  with compiling_for('gpu', interpret=True):
    prepared = only_generating(run)
    assert only_generating(prepared).params == prepared.params
    found = generate_tokens(prepared, [[Letters.bos_id, 3]], 3, GREEDY, seed=0)
  block = run.params['moe_blocks']
  experts = prepared.params['moe_blocks'].experts
  assert block['attention']['key'].is_deleted() and block['moe']['router']['experts'].is_deleted()
  assert experts['gate'] is block['moe']['experts']['gate']
  assert found == _recomputed(_run(seed=3), [[Letters.bos_id, 3]], 3)


@pytest.mark.parametrize('sampling', [GREEDY, Sampling(1.0, top_p=0.9)], ids=str)
def test_a_stream_is_the_same_tokens_one_by_one(sampling):
  run = _run(seed=1)
  for prompt in PROMPTS:
    ids = [Letters.bos_id, *run.tokenizer.encode(prompt)]
    for most in (1, 4, 20):
      [whole] = generate_tokens(run, [ids], most, sampling, seed=5)
      assert list(stream_tokens(run, ids, most, sampling, seed=5)) == whole


def test_a_stream_ends_with_the_token_it_is_told():
  """That token is the only control piece that can be drawn."""
  run, ids = _run(seed=1), [Letters.bos_id, *Letters().encode('abc')]
  whole = list(stream_tokens(run, ids, 20, GREEDY, 0))
  end = whole[2]
  assert list(stream_tokens(run, ids, 20, GREEDY, 0, end_id=end)) == whole[: whole.index(end) + 1]
  drawn = [list(stream_tokens(run, ids, 9, Sampling(3.0), seed, end_id=0)) for seed in range(40)]
  assert not any(Letters.eos_id in each for each in drawn)
  assert any(each[-1] == 0 for each in drawn) and all(0 not in each[:-1] for each in drawn)


def test_a_row_does_not_depend_on_its_batch():
  run = _run()
  together = generate(run, PROMPTS, 20, GREEDY)
  order = [4, 2, 0, 3, 1]
  shuffled = generate(run, [PROMPTS[i] for i in order], 20, GREEDY)
  assert [together[i] for i in order] == shuffled


def test_where_completions_stop():
  run = _run(seed=1)
  whole = generate(run, PROMPTS, 20, GREEDY)
  for prompt, completion in zip(PROMPTS, whole):
    assert completion.prompt == prompt
    assert completion.text == run.tokenizer.decode(
      [t for t in completion.tokens if t != Letters.eos_id]
    )
    if completion.stopped_by == 'context':  # one more than fits: the last needs no position
      assert 1 + len(prompt) + len(completion.tokens) == CONTEXT + 1
    else:
      assert (completion.stopped_by, completion.tokens[-1]) == ('end', Letters.eos_id)
  assert whole[4].stopped_by in ('context', 'end')
  assert len(whole[4].tokens) == 1


def test_an_end_token_and_the_length_asked_for():
  """The second token of the longest greedy completion becomes the end of text. Every completion
  is then cut at that token, or after the five asked for.
  """
  run = _run(seed=1)
  whole = generate(run, PROMPTS, 20, GREEDY)
  longest = max(range(5), key=lambda i: len(whole[i].tokens))
  end = whole[longest].tokens[1]
  cut = generate(_run(seed=1, tokenizer=EndsOn(end)), PROMPTS, 5, GREEDY)
  for completion, before in zip(cut, whole):
    tokens = before.tokens[:5]
    ended = end in tokens
    assert completion.tokens == (tokens[: tokens.index(end) + 1] if ended else tokens)
    assert completion.text == run.tokenizer.decode(
      completion.tokens[:-1] if ended else completion.tokens
    )
    assert completion.stopped_by == (
      'end' if ended else 'length' if len(tokens) == 5 else 'context'
    )
  assert cut[longest].stopped_by == 'end'


def test_sampling_is_reproducible_and_of_the_seed():
  run, sampling = _run(), Sampling(temperature=1.5, top_k=20, top_p=0.95)
  sample = lambda seed: [c.tokens for c in generate(run, PROMPTS, 20, sampling, seed)]
  assert sample(1) == sample(1) != sample(2)
  assert all(token < 28 and token != Letters.bos_id for tokens in sample(3) for token in tokens)


LOGITS_BV = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32) * 2


@jax.jit
def _draw(sampling, logits_BV, key):
  keys = jax.random.split(key, (4000, logits_BV.shape[0]))
  return jax.vmap(lambda keys_B: choose(logits_BV, sampling, keys_B))(keys)


def draw(sampling, logits_BV, key):
  return _draw(sampling.as_arrays(logits_BV.shape[1]), logits_BV, key)


@pytest.mark.parametrize(
  'sampling',
  [
    Sampling(1.0),
    Sampling(0.5),
    Sampling(1.0, top_k=3),
    Sampling(2.0, top_p=0.6),
    Sampling(1.5, top_k=5, top_p=0.7),
    Sampling(1.0, top_k=100),
  ],
  ids=str,
)
def test_choose_samples_the_distribution(sampling):
  drawn_NB = np.asarray(draw(sampling, LOGITS_BV, jax.random.key(0)))
  assert drawn_NB.dtype == np.int32
  for b in range(4):
    truth = oracles.sampling_probabilities(exact(LOGITS_BV[b]), *sampling)
    shares = np.bincount(drawn_NB[:, b], minlength=20) / len(drawn_NB)
    assert (shares[truth == 0] == 0).all()
    assert (shares[truth > 0.005] > 0).all()
    np.testing.assert_allclose(shares, truth, atol=5 * 0.5 / 4000**0.5)


@pytest.mark.parametrize(
  'sampling',
  [
    GREEDY,
    Sampling(3.0, top_k=1),
    Sampling(3.0, top_p=1e-6),
    Sampling(3.0, top_p=1e-300),
    Sampling(1e-20),
    Sampling(1e-45, top_p=0.5),
    Sampling(1e-300, top_k=7),
  ],
  ids=str,
)
def test_greedy_and_what_equals_it(sampling):
  assert (draw(sampling, LOGITS_BV, jax.random.key(0)) == LOGITS_BV.argmax(axis=1)[None]).all()


def test_greedy_ties_go_to_the_lower_id():
  logits_BV = jnp.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
  keys_B = jax.random.split(jax.random.key(0), 2)
  assert choose(logits_BV, GREEDY.as_arrays(3), keys_B).tolist() == [1, 0]


@pytest.mark.parametrize('top_k', [0, 2, 2**70])
@pytest.mark.parametrize('top_p', [5e-324, 1e-45, 0.9, 1 - 1e-16, 1.0])
@pytest.mark.parametrize('temperature', [5e-324, 1e-45, 1e-30, 1.0, 1e30, 3.5e38, 1.7e308])
def test_a_token_that_is_not_allowed_is_never_drawn(temperature, top_p, top_k):
  logits_BV = jnp.array([[-jnp.inf, 0.0, -jnp.inf, -1e4, -jnp.inf, 1e4]])
  keys_B = jax.random.split(jax.random.key(0), 64)
  sampling = Sampling(temperature, top_k, top_p).as_arrays(6)
  drawn_B = choose(jnp.broadcast_to(logits_BV, (64, 6)), sampling, keys_B)
  assert set(drawn_B.tolist()) <= {1, 3, 5}
  hot = temperature >= 1e30 and top_p > 0.5 and top_k != 2
  assert len(set(drawn_B.tolist())) == (3 if hot else 1 if temperature < 1e30 or top_p < 0.5 else 2)


class Words:
  """A tokenizer like spm_train's default: a piece includes its leading space, and decoding drops
  the first space.
  """

  bos_id, eos_id, vocab_size = 26, 27, 28
  is_text = np.arange(28) < 26

  def encode(self, text):
    return [ord(word[0]) - ord('a') for word in text.split()]

  def decode(self, ids):
    return ' '.join(chr(ord('a') + i) for i in ids)


def test_prompt_and_completion_are_the_text_of_all_tokens():
  run = _run(seed=1, tokenizer=Words())
  for completion in generate(run, ['', 'a', 'b c d'], 4, Sampling(5.0), seed=3):
    tokens = [token for token in completion.tokens if token != Words.eos_id]
    whole = run.tokenizer.decode([*run.tokenizer.encode(completion.prompt), *tokens])
    assert completion.prompt + completion.text == whole


def test_more_new_tokens_than_any_context_cost_no_memory():
  assert generate(_run(seed=1), ['abc'], 10**12, GREEDY) == generate(
    _run(seed=1), ['abc'], 20, GREEDY
  )


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ({'sampling': Sampling(-1.0)}, 'temperature=-1.0'),
    ({'sampling': Sampling(float('nan'))}, 'temperature=nan'),
    ({'sampling': Sampling(1.0, top_k=-1)}, 'top_k=-1'),
    ({'sampling': Sampling(1.0, top_p=0.0)}, 'top_p=0.0'),
    ({'sampling': Sampling(1.0, top_p=1.5)}, 'top_p=1.5'),
    ({'sampling': Sampling(1.0, top_p=float('nan'))}, 'top_p=nan'),
    ({'max_new_tokens': 0}, 'max_new_tokens=0'),
    ({'seed': -1}, 'seed=-1 must be at least 0 and at most 4294967295'),
    ({'seed': 2**32}, 'seed=4294967296'),
    ({'seed': 2**63}, 'seed=9223372036854775808'),
    ({'prompts': ['ok', 'caf\udce9']}, r"prompt 'caf.udce9' is not UTF-8 at character 4"),
    ({'prompts': ['a' * 12]}, '13 tokens.*context is 12'),
  ],
)
def test_bad_arguments(arguments, words):
  with pytest.raises(UserError, match=words):
    generate(_run(), **{'prompts': ['a'], 'max_new_tokens': 1, 'sampling': GREEDY} | arguments)


def test_no_prompts_no_completions():
  assert generate(_run(), [], 4, GREEDY) == []


def test_a_sample_does_not_depend_on_its_neighbours():
  run, sampling = _run(), Sampling(temperature=1.0)
  together = generate(run, ['abc', 'zz'], 6, sampling, seed=5)
  assert generate(run, ['abc', 'yxw'], 6, sampling, seed=5)[0] == together[0]
  assert generate(run, ['abc'], 6, sampling, seed=5)[0] == together[0]


def _sampled_without_a_cache(run, prompt_ids, max_new, sampling, seed):
  """Tokens drawn with the oracle's probabilities of the whole sequence, and each row's own key."""
  key, rows = jax.random.key(seed), []
  for number, ids in enumerate(prompt_ids):
    row_key, ids, new = jax.random.fold_in(key, number), list(ids), []
    while len(new) < max_new and len(ids) <= CONTEXT and run.tokenizer.eos_id not in new:
      tokens_BL = np.zeros((1, CONTEXT), np.int32)
      tokens_BL[0, : len(ids)] = ids
      logits_V = np.array(_next(run.config, run.params, tokens_BL, np.array([len(ids)])))[0]
      logits_V[[Letters.bos_id, *range(28, VOCAB)]] = -np.inf
      shares_V = oracles.sampling_probabilities(exact(logits_V), *sampling)
      with np.errstate(divide='ignore'):
        noise_V = jax.random.gumbel(jax.random.fold_in(row_key, len(new)), (VOCAB,))
        new.append(int((np.log(shares_V) + np.asarray(noise_V)).argmax()))
      ids.append(new[-1])
    rows.append(new)
  return rows


@pytest.mark.parametrize('count', [1, 5])
@pytest.mark.parametrize(
  'sampling',
  [Sampling(0.7), Sampling(1.5, top_k=20, top_p=0.95), Sampling(2.0, top_p=0.8)],
  ids=str,
)
def test_samples_do_not_depend_on_what_shapes_are_filled_up_with(sampling, count):
  """Rows run one after another, two together with others waiting, and all at once."""
  run = _run()
  prompt_ids = [[Letters.bos_id, *run.tokenizer.encode(prompt)] for prompt in PROMPTS[:count]]
  for max_new in (1, 4, 20):
    truth = _sampled_without_a_cache(run, prompt_ids, max_new, sampling, 7)
    for rows in (1, 2, 16):
      assert generate_tokens(run, prompt_ids, max_new, sampling, 7, rows) == truth


@pytest.fixture(scope='module')
def long_run():
  config = small_config(**{'data.seq_len': 500, 'model.num_layers': 1})
  return Run(Transformer(config), small_params(config, std=0.5), Letters(), config, step=0)


def test_few_programs_serve_all_requests(long_run):
  sizes = lambda: [
    each._cache_size() for each in (programs._after_piece, programs.step, programs.put_rows)
  ]
  before = np.array(sizes())
  for sampling in (GREEDY, Sampling(0.5), Sampling(0.9, 7), Sampling(2, 3, 0.5)):
    for max_new in (3, 8):
      for prompts in (['a', 'bc', 'd'], ['a' * 3, 'b' * 2, '', 'zz']):
        generate(long_run, prompts, max_new, sampling, seed=max_new)
  assert (sizes() - before == 1).all()
  for length in (1, 40, 100, 130, 250, 400):
    generate(long_run, ['a' * length], 4, GREEDY)
  # One row has pieces of 32, 64, 128, 256 and 512 tokens, and caches of 128, 256 and 500 positions.
  pieces, steps, puts = sizes() - before - 1
  assert (pieces, steps) == (5, 3) and puts <= 6


def test_a_prompt_in_pieces_and_a_cache_that_grows(long_run, monkeypatch):
  """Pieces and a first cache that are shorter than the prompts give the same tokens."""
  prompts = ['a' * 3, '', 'q' * 33, 'bcd' * 40]
  sampling = Sampling(1.5)
  whole = [c.tokens for c in generate(long_run, prompts, 9, sampling, rows=2)]
  monkeypatch.setattr(programs, 'MOST_PIECE', 32)
  monkeypatch.setattr(programs, '_LEAST_ROOM', 32)
  rooms = []
  original = programs.grown
  monkeypatch.setattr(programs, 'grown', lambda c, room: rooms.append(room) or original(c, room))
  pieces = [c.tokens for c in generate(long_run, prompts, 9, sampling, rows=2)]
  assert pieces == whole
  assert rooms[-1] >= 128 and rooms == sorted(set(rooms))


def test_a_row_that_has_ended_makes_room(monkeypatch):
  """With two places and completions that end early, no place is free while a prompt waits."""
  run = _run(seed=1)
  prompts = ['abc', 'q', 'hello', '', 'zz', 'yxw', 'm', 'no']
  whole = generate(run, prompts, 20, Sampling(2.0))
  in_work, original = [], programs.step

  def step(model, params, drawing, rows, cache):
    in_work.append(int((rows.positions_B > 0).sum()))
    return original(model, params, drawing, rows, cache)

  monkeypatch.setattr(programs, 'step', step)
  assert generate(run, prompts, 20, Sampling(2.0), rows=2) == whole
  lengths = [len(completion.tokens) for completion in whole]
  assert len(set(lengths)) > 3
  assert in_work[: in_work.index(1)] == [2] * in_work.index(1)
  assert sum(in_work) == sum(lengths) - len(prompts)


@pytest.mark.parametrize('rows', [1, 2])
def test_a_stop_string_ends_a_completion_before_itself(rows):
  run = _run(seed=1)
  whole = generate(run, PROMPTS, 20, GREEDY)
  long = max(whole, key=lambda completion: len(completion.text))
  stop = long.text[3:5]
  assert len(stop) == 2
  for before, cut in zip(whole, generate(run, PROMPTS, 20, GREEDY, 0, [stop, '', '#'], rows)):
    assert before.tokens[: len(cut.tokens)] == cut.tokens
    if stop in before.text:
      end = before.text.index(stop)
      assert (cut.text, cut.stopped_by, len(cut.tokens)) == (before.text[:end], 'stop', end + 2)
    else:
      assert cut == before
