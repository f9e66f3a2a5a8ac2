"""The pure training step: loss, gradients over microbatches, AdamW, and skipping of non-finite steps.

B sequences, L tokens a sequence, D model width, N MoE layers, E routed experts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from moe import metrics as metrics_lib
from moe.config import Config
from moe.data.packing import Batch
from moe.loss import BalanceTerms, Totals, balance_terms, cross_entropy
from moe.model import Transformer, init_params
from moe.ops.router import RoutingStats
from moe.optimizer import clip, make_optimizer, schedule


@struct.dataclass
class TrainState:
  """Everything that a step changes."""

  step: jax.Array  # int32: steps taken, skipped ones included
  params: dict
  optimizer_state: optax.OptState
  bad_steps: jax.Array  # int32: steps skipped so far because loss or gradient was not finite
  bad_streak: jax.Array  # int32: of these, the ones in a row up to now


def init_state(config: Config) -> TrainState:
  """The state before step 0, a pure function of the config. Jit it, or take its shapes with jax.eval_shape."""
  params = init_params(config, jax.random.key(config.train.seed))
  zero = lambda: jnp.zeros((), jnp.int32)  # one buffer each: a donated state may not share them
  return TrainState(zero(), params, make_optimizer(config.optimizer).init(params), zero(), zero())


def make_train_step(config: Config) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """train_step(state, batch) → (state, metrics). Pure; jit it with the state donated.

  The gradient is that of the whole batch's objective however many microbatches it is computed in. When it or the loss
  is not finite the parameters stay as they are and the step is counted; after more than max_bad_steps in a row nothing
  is updated any more, so that a host that looks only now and then still finds the state as it was then.
  """
  optimizer = make_optimizer(config.optimizer)
  learning_rate = schedule(config.optimizer, config.train.num_steps)

  def train_step(state, batch):
    gradients, metrics = loss_and_gradients(config, state.params, batch)
    with jax.named_scope('optimizer'):
      norm = optax.tree.norm(gradients)
      updates, optimizer_state = optimizer.update(
        clip(gradients, norm, config.optimizer.clip_norm), state.optimizer_state, state.params
      )
      rate = learning_rate(state.step)
      params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)

    halted = state.bad_streak > config.train.max_bad_steps
    good = jnp.isfinite(metrics['objective']) & jnp.isfinite(norm) & ~halted
    keep_if_bad = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    state = TrainState(
      step=state.step + 1,
      params=keep_if_bad(params, state.params),
      optimizer_state=keep_if_bad(optimizer_state, state.optimizer_state),
      bad_steps=state.bad_steps + ~good,
      bad_streak=jnp.where(good, 0, state.bad_streak + 1),
    )
    metrics |= {
      'gradient_norm': norm,
      'learning_rate': rate,
      'bad_steps': state.bad_steps,
      'bad_streak': state.bad_streak,
    }
    return state, metrics

  return train_step


def loss_and_gradients(config: Config, params: dict, batch: Batch) -> tuple[dict, dict[str, jax.Array]]:
  """Gradients (float32, like params) of the batch's objective, and its metrics.

  metrics: `loss` (cross-entropy, nats a target token), `objective` (loss plus every balance term), the three terms
  `balance_expert`, `balance_device`, `router_z` (summed over layers, as in the objective), `tokens` (real ones), and
  where anything is routed those of `metrics.routing_metrics`.
  """
  totals = Totals.of(batch.weights_BL, batch.segment_ids_BL)
  parts = config.train.microbatches
  batches = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)

  counts_NE = None
  if config.moe.balance_scope == 'batch' and parts > 1 and config.moe.num_experts:
    # f of Eq. 13 needs the counts of all parts before the first part's gradient: one more forward pass gets them.
    add = lambda total, part: (total + forward(config, params, part)[1].counts_BE.sum(axis=1), None)
    counts_NE = lax.scan(add, jnp.zeros(_routing_shape(config), jnp.int32), batches)[0]

  def objective(params, part):
    hidden_BLD, stats = forward(config, params, part)
    rows = lambda x: x.reshape(-1, *x.shape[2:])
    with jax.named_scope('cross_entropy'):
      loss = cross_entropy(
        rows(hidden_BLD), params['head'], rows(part.targets_BL), rows(part.weights_BL), config.train.loss_chunk
      )
    loss /= totals.targets
    terms, sums = BalanceTerms(*jnp.zeros(3)), None
    if stats is not None:
      terms = balance_terms(stats, config.moe, totals, counts_NE)
      sums = jax.tree.map(lax.stop_gradient, metrics_lib.sum_over_sequences(stats))
    return loss + sum(terms), (loss, terms, sums)

  gradient = jax.value_and_grad(objective, has_aux=True)
  if parts == 1:
    (total, (loss, terms, sums)), gradients = gradient(params, batch)
  else:
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], batches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = lambda carry, part: (jax.tree.map(jnp.add, carry, gradient(params, part)), None)
    ((total, (loss, terms, sums)), gradients), _ = lax.scan(add, zeros, batches)

  metrics = {
    'loss': loss,
    'objective': total,
    'balance_expert': terms.expert,
    'balance_device': terms.device,
    'router_z': terms.router_z,
    'tokens': totals.tokens,
  }
  if sums is not None:
    metrics |= metrics_lib.routing_metrics(sums, totals.tokens)
  return gradients, metrics


def forward(config: Config, params: dict, batch: Batch) -> tuple[jax.Array, RoutingStats | None]:
  """hidden_BLD in the compute type and the routing statistics of a batch (None where nothing is routed)."""
  hidden_BLD, stats, _ = Transformer(config).apply(
    {'params': params}, batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL
  )
  return hidden_BLD, stats


def _routing_shape(config):
  return config.model.num_layers - config.model.num_dense_layers, config.moe.num_experts
