"""The loss of packed conversations is that of each conversation alone, over the replies' tokens
only.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.data import packing
from moe.data.chat.packing import best_fit
from moe.model import Transformer
from moe.parallel import mesh as mesh_lib
from moe.parallel.feeding import place_whole
from moe.parameters import shardings
from moe.train_step import loss_and_gradients
from tests.small import assert_close, small_config, small_params

pytestmark = pytest.mark.usefixtures('quick_compile')

LENGTH, VOCAB = 24, 32
CONFIG = {
  'data.format': 'chat',
  'data.seq_len': LENGTH,
  'data.batch_size': 8,
  'moe.expert_balance_weight': 0.0,  # this loss is over all tokens, learnt or not
  'ops.implementation': 'reference',
}


def conversations(count=20):
  """[(tokens, which of them are learnt)] of conversations with one reply or two."""
  dice, made = np.random.default_rng(3), []
  for _ in range(count):
    learnt = []
    for _ in range(dice.integers(1, 3)):
      learnt += [False] * dice.integers(2, 5) + [True] * dice.integers(2, 5)
    made.append((dice.integers(0, VOCAB, len(learnt)), np.array(learnt)))
  return made


def rows(chats, groups):
  """A batch with a row for each group of conversations, written out token by token."""
  batch = packing.empty_rows(len(groups), LENGTH)
  for row, group in enumerate(groups):
    at = 0
    for segment, number in enumerate(group, start=1):
      tokens, learnt = chats[number]
      for i in range(len(tokens) - 1):
        batch.tokens_BL[row, at], batch.targets_BL[row, at] = tokens[i], tokens[i + 1]
        batch.positions_BL[row, at], batch.segment_ids_BL[row, at] = i, segment
        batch.weights_BL[row, at] = learnt[i + 1]
        at += 1
  return batch


CHATS = conversations()
PACKED = best_fit([len(tokens) - 1 for tokens, _ in CHATS], LENGTH)
BATCH = rows(CHATS, PACKED + [[]] * (-len(PACKED) % 8))


def config(**overrides):
  return small_config(**CONFIG | {'data.batch_size': len(BATCH.tokens_BL)} | overrides)


_gradients = jax.jit(loss_and_gradients, static_argnums=0)


def computed(config, batch=BATCH):
  gradients, metrics = _gradients(config, small_params(config), jax.tree.map(jnp.asarray, batch))
  return jax.device_get((metrics['loss'], gradients, metrics))


@pytest.fixture(scope='module')
def plain():
  return computed(config())


def test_packed_is_what_each_conversation_is_alone(plain):
  """The truth is the mean of −log p over the replies' tokens, with each conversation in a row of
  its own.
  """
  alone, model = rows(CHATS, [[number] for number in range(len(CHATS))]), Transformer(config())
  learnt = [
    (row, place - 1, tokens[place])
    for row, (tokens, is_learnt) in enumerate(CHATS)
    for place in np.flatnonzero(is_learnt)
  ]

  def truth(params):
    hidden = model.apply(
      {'params': params}, alone.tokens_BL, alone.positions_BL, alone.segment_ids_BL
    )[0]
    logits = model.apply({'params': params}, hidden, method='logits')
    return -jax.nn.log_softmax(logits)[tuple(np.transpose(learnt))].mean()

  loss, gradients, metrics = plain
  expected, slopes = jax.jit(jax.value_and_grad(truth))(small_params(config()))
  assert len(PACKED) < len(CHATS) / 1.5
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert_close(gradients, slopes, 2e-5)
  assert metrics['examples'] == len(CHATS)
  inputs = sum(len(tokens) - 1 for tokens, _ in CHATS)
  np.testing.assert_allclose(metrics['packing_efficiency'], inputs / BATCH.tokens_BL.size)


def test_no_token_of_a_prompt_contributes(plain):
  """Changing targets that are not learnt changes no bit. Learning one more changes the loss."""
  others = np.where(BATCH.weights_BL > 0, BATCH.targets_BL, (BATCH.targets_BL + 7) % VOCAB)
  changed = computed(config(), BATCH._replace(targets_BL=others))
  jax.tree.map(np.testing.assert_array_equal, changed, plain)
  more = BATCH.weights_BL.copy()
  more[np.argwhere((more == 0) & (BATCH.segment_ids_BL > 0))[0].tolist()[0]] = 1
  assert computed(config(), BATCH._replace(weights_BL=more))[0] != plain[0]


def test_on_a_mesh_and_in_microbatches(plain):
  made = config(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.expert': 2, 'train.microbatches': 1})
  mesh = mesh_lib.make_mesh(made)
  params = small_params(config())
  params = jax.device_put(params, shardings(made, mesh, params))
  with mesh_lib.use(mesh, made.mesh.zero):
    gradients, metrics = jax.device_get(_gradients(made, params, place_whole(BATCH, mesh)))
  assert_close((metrics['loss'], gradients), plain[:2], 2e-5)
  assert metrics['examples'] == plain[2]['examples']
  assert_close(computed(config(**{'train.microbatches': 4}))[:2], plain[:2], 2e-5)
