"""AdamW and the paper's learning-rate schedules (Section 4.1.3);
other optimisers are a line in OPTIMIZERS.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe.config import Config, OptimizerConfig


class Hyperparameters(NamedTuple):
  """Numbers of a config that the compiled training step takes as arguments:
  runs that differ in these share a program.

  Scalars, float32 unless stated. Divisors are kept as reciprocals: when they were constants of the
  program, XLA multiplied by the reciprocal, and runs of that time resume with the same bits.
  """

  peak_lr: np.ndarray
  warmup_steps: np.ndarray
  per_warmup_step: np.ndarray  # 1 / warmup_steps
  decay_steps: np.ndarray  # (number of decays,), step_decay: the step from which each acts
  decay_factor: np.ndarray
  per_cosine_step: np.ndarray  # cosine: 1 / steps after warm-up
  final_lr_fraction: np.ndarray
  cosine_lr_fraction: np.ndarray  # 1 − final_lr_fraction
  weight_decay: np.ndarray
  clip_norm: np.ndarray  # infinite: no clipping
  max_bad_steps: np.ndarray  # int32


def hyperparameters(config: Config) -> Hyperparameters:
  """The hyperparameters of a config, as NumPy arrays."""
  optimizer = config.optimizer
  num_steps = optimizer.start_step + config.train.num_steps
  warmup = max(optimizer.warmup_steps, 1)
  numbers = Hyperparameters(
    peak_lr=optimizer.peak_lr,
    warmup_steps=optimizer.warmup_steps,
    per_warmup_step=1 / warmup,
    decay_steps=[round(share * num_steps) for share in optimizer.decay_at],
    decay_factor=optimizer.decay_factor,
    per_cosine_step=1 / max(num_steps - optimizer.warmup_steps, 1),
    final_lr_fraction=optimizer.final_lr_fraction,
    cosine_lr_fraction=1 - optimizer.final_lr_fraction,
    weight_decay=optimizer.weight_decay,
    clip_norm=optimizer.clip_norm or np.inf,
    max_bad_steps=config.train.max_bad_steps,
  )
  floats = jax.tree.map(np.float32, numbers, is_leaf=lambda x: isinstance(x, list))
  return floats._replace(max_bad_steps=np.int32(numbers.max_bad_steps))


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
  return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)


# What `optimizer.name` may be → what it makes of gradients, before weight decay and the rate.
OPTIMIZERS: dict[str, Callable[[OptimizerConfig], optax.GradientTransformation]] = {
  'adamw': _adam,
}


def make_optimizer(
  config: OptimizerConfig, decayed: Any, weight_decay: float | jax.Array
) -> optax.GradientTransformation:
  """The optimiser without its learning rate: updates are to be scaled by −`learning_rate`.

  Gradients are clipped before. The rate is kept out so that it follows the training step, even
  after a bad step's update was skipped.

  decayed: a tree of booleans, True where weight decay acts: `parameters.decayed`.
  """
  return optax.chain(
    OPTIMIZERS[config.name](config),
    optax.add_decayed_weights(weight_decay, mask=decayed),
  )


def clip(gradients, norm: jax.Array, max_norm: jax.Array):
  """Gradients scaled so that their global norm is at most `max_norm`, which may be infinite."""
  scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-30))
  return jax.tree.map(lambda g: g * scale, gradients)


def learning_rate(kind: str, numbers: Hyperparameters, step: jax.Array) -> jax.Array:
  """The learning rate of a step, counted from 0. Linear warm-up from 0, whose first
  step is already above 0; then

  step_decay: × decay_factor at each share `decay_at` of its steps (0.316 at 80% and again at 90%);
  constant: the peak; cosine: half a cosine down to final_lr_fraction · peak at the last step.

  The schedule has start_step + num_steps steps. The run takes the last num_steps of them: its first
  step is `start_step`.

  kind: optimizer.schedule.
  """
  step = jnp.asarray(step, jnp.float32)
  warmup = jnp.minimum(1.0, (step + 1) * numbers.per_warmup_step)
  if kind == 'step_decay':
    decays = (step >= numbers.decay_steps).astype(jnp.float32).sum()
    factor = numbers.decay_factor**decays
  elif kind == 'cosine':
    progress = (step + 1 - numbers.warmup_steps) * numbers.per_cosine_step
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
    factor = numbers.final_lr_fraction + numbers.cosine_lr_fraction * cosine
  else:
    factor = 1.0
  return numbers.peak_lr * warmup * factor
