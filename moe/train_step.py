"""The pure training step: loss, gradients over microbatches, AdamW,
and skipping of non-finite steps.

B sequences, L tokens a sequence, D model width, N MoE layers, E routed experts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.sharding import Mesh

from moe import pipeline_parallel as pipeline
from moe.config import Config
from moe.data.packing import Batch
from moe.finetune.trained import as_applied, join, put_back, split
from moe.layers.moe_layer import Aside
from moe.losses import Totals
from moe.metrics import domains, routing, telemetry
from moe.model import Transformer, after_step
from moe.objective import add, nothing, objective, token_loss, total
from moe.optimizer import Hyperparameters, clip, learning_rate, make_optimizer
from moe.parallel import mesh as mesh_lib
from moe.parallel.sharding import constrain, replicated
from moe.parameters import decayed, init


@struct.dataclass
class TrainState:
  """Everything that a step changes."""

  # int32: the step of the schedule, optimizer.start_step + steps taken, skipped ones included.
  step: jax.Array
  params: dict
  optimizer_state: optax.OptState  # of the trained part alone, `finetune.trained.split`
  bad_steps: jax.Array  # int32: steps skipped so far because loss or gradient was not finite
  bad_streak: jax.Array  # int32: of these, the ones in a row up to now


def init_state(config: Config, seed: jax.Array | None = None) -> TrainState:
  """The state before step 0, a pure function of the config.
  Jit it, or take its shapes with jax.eval_shape.

  seed: uint32, replaces train.seed, so that one compiled program serves every seed.
  """
  params = init(config, jax.random.key(config.train.seed if seed is None else seed))
  zero = lambda: jnp.zeros((), jnp.int32)  # one buffer each: a donated state may not share them
  optimizer = make_optimizer(config.optimizer, decayed(config), config.optimizer.weight_decay)
  step = jnp.full((), config.optimizer.start_step, jnp.int32)
  return TrainState(step, params, optimizer.init(split(config, params)[0]), zero(), zero())


def make_train_step(
  config: Config,
) -> Callable[[TrainState, Batch, Hyperparameters], tuple[TrainState, dict[str, jax.Array]]]:
  """train_step(state, batch, `hyperparameters(config)`) → (state, metrics).
  Pure; jit it with the state donated.

  Neither train.seed nor a hyperparameter is a constant of the program:
  runs that differ only in those compile the same one.

  The gradient is that of the whole batch's objective, whatever the number of microbatches.
  If it or the loss is not finite, the parameters stay as they are and the step counts as bad. After
  more than max_bad_steps bad steps in a row nothing is updated any more, so that a host that looks
  only now and then still finds the state of that moment.
  """
  is_decayed = decayed(config)

  def train_step(state, batch, numbers):
    optimizer = make_optimizer(config.optimizer, is_decayed, numbers.weight_decay)
    gradients, metrics = loss_and_gradients(config, state.params, batch)
    with jax.named_scope('optimizer'):
      old, _ = split(config, state.params)
      norm = optax.tree.norm(gradients)
      updates, optimizer_state = optimizer.update(
        clip(gradients, norm, numbers.clip_norm), state.optimizer_state, old
      )
      rate = learning_rate(config.optimizer.schedule, numbers, state.step)
      trained = jax.tree.map(lambda p, u: p - rate * u, old, updates)
      if 'expert_counts_NE' in metrics and config.finetune.trainable == 'all':
        trained = after_step(config, trained, metrics)
      metrics = telemetry.shown(metrics)

      halted = state.bad_streak > numbers.max_bad_steps
      good = jnp.isfinite(metrics['objective']) & jnp.isfinite(norm) & ~halted
      keep_if_bad = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
      trained = keep_if_bad(trained, old)
      optimizer_state = keep_if_bad(optimizer_state, state.optimizer_state)

    state = TrainState(
      step=state.step + 1,
      params=put_back(config, state.params, trained),
      optimizer_state=optimizer_state,
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


def jit_step(step: Callable, mesh: Mesh, state: TrainState) -> Any:
  """Jits step(state, …) → (state, metrics). The state is donated and keeps its shardings;
  the metrics are replicated.

  state: a state, or its ShapeDtypeStructs with shardings.
  """
  where = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(step, donate_argnums=0, out_shardings=(where, replicated(mesh)))


def loss_and_gradients(
  config: Config, params: dict, batch: Batch
) -> tuple[dict, dict[str, jax.Array]]:
  """Gradients (float32, of the trained part of params) of the batch's objective, and its metrics.

  metrics: `loss` (cross-entropy, nats a target token), `objective` (loss plus every balance term),
  `loss/NAME` of every term of LOSSES (weighted, summed over layers, as in the objective), `tokens`
  (real ones), for conversations `examples` and `packing_efficiency` (the tokens' share of all
  places), those of `moe.metrics.domains` where the batch tells its rows' domains, and those of
  `moe.metrics.routing.metrics`: all that the layers measured.
  """
  totals = Totals.of(batch.weights_BL, batch.segment_ids_BL)
  parts = config.train.microbatches
  batches = jax.tree.map(lambda x: _parts(x, parts), batch)

  trained, frozen = split(config, params)
  counts_NE = None
  if config.moe.balance_scope == 'batch' and parts > 1 and config.moe.num_experts:
    # f of Eq. 13 needs the counts of all parts before the first part's gradient:
    # one more forward pass gets them.
    counts = lambda part: forward(config, params, part)[1].telemetry['expert_counts'].value
    add_counts = lambda counted, part: (counted + counts(part), None)
    counts_NE = lax.scan(add_counts, jnp.zeros(_routing_shape(config), jnp.int32), batches)[0]

  def of_part(trained, part):
    params = join(trained, frozen)
    hidden_BLD, aside = forward(config, params, part)
    loss, by_domain = token_loss(config, params['head'], hidden_BLD, part, totals)
    aside = aside._replace(telemetry=(aside.telemetry, by_domain))
    return objective(config, loss, aside, part, totals, counts_NE)

  gradient = jax.grad(of_part, has_aux=True)
  if mesh_lib.size('stage') > 1:
    gradients, sums = pipeline.gradients(config, trained, frozen, batches, totals, counts_NE)
  elif parts == 1:
    gradients, sums = gradient(trained, batch)
  else:
    shapes = jax.eval_shape(gradient, trained, jax.tree.map(lambda x: x[0], batches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[0])

    def add_part(carry, part):
      (gradients, sums), (more, new) = carry, gradient(trained, part)
      return (jax.tree.map(jnp.add, gradients, more), add(sums, new)), None

    (gradients, sums), _ = lax.scan(add_part, (zeros, nothing(shapes[1])), batches)

  by_layer, by_domain = sums.telemetry
  return gradients, {
    'loss': sums.loss,
    'objective': total(sums.loss, sums.terms),
    **{f'loss/{name}': term for name, term in sums.terms.items()},
    'tokens': totals.tokens,
    **(_of_packing(batch) if config.data.format == 'chat' else {}),
    **domains.values(by_domain),
    **routing.metrics(by_layer, totals.tokens),
  }


def forward(config: Config, params: dict, batch: Batch) -> tuple[jax.Array, Aside]:
  """hidden_BLD in the compute type, and what the layers measured of a batch.
  params: a run's, or its trained and frozen part joined.
  """
  return forward_of(Transformer(config), as_applied(config, params), batch)


def forward_of(model: Transformer, params: dict, batch: Batch) -> tuple[jax.Array, Aside]:
  """As `forward`, for a given model, with its probe."""
  inputs = batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL
  return model.apply({'params': params}, *inputs)[:2]


def _of_packing(batch):
  """How many conversations there are, and the share of the rows that they fill."""
  is_token_BL = batch.segment_ids_BL > 0
  return {
    'examples': (is_token_BL & (batch.positions_BL == 0)).sum(),
    'packing_efficiency': is_token_BL.mean(),
  }


def _parts(x_B, parts):
  """Splits a batch into parts, each of every parts-th sequence, so that on a mesh every device
  keeps its own.
  """
  x = x_B.reshape(-1, parts, *x_B.shape[1:]).swapaxes(0, 1)
  return constrain(x, None, 'batch', *(None for _ in x_B.shape[1:]))


def _routing_shape(config):
  return config.model.num_moe_layers, config.moe.num_experts
