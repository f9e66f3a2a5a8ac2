"""AdamW and the paper's learning-rate schedules (Section 4.1.3);
other optimisers are a line in OPTIMIZERS.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moe.config import OptimizerConfig


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
  return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)


# What `optimizer.name` may be → what it makes of gradients, before weight decay and the rate.
OPTIMIZERS: dict[str, Callable[[OptimizerConfig], optax.GradientTransformation]] = {
  'adamw': _adam,
}


def make_optimizer(config: OptimizerConfig, decayed: Any) -> optax.GradientTransformation:
  """The optimiser without its learning rate: updates are to be scaled by −`schedule(step)`.

  Clipping comes before. The rate is kept out so that it follows the training step, also when a bad
  step's update was skipped.

  decayed: tree of booleans, which parameters weight decay acts on: `parameters.decayed`.
  """
  return optax.chain(
    OPTIMIZERS[config.name](config),
    optax.add_decayed_weights(config.weight_decay, mask=decayed),
  )


def clip(gradients, norm: jax.Array, max_norm: float):
  """Gradients scaled so that their global norm is at most `max_norm`; 0 turns it off."""
  if not max_norm:
    return gradients
  scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-30))
  return jax.tree.map(lambda g: g * scale, gradients)


def schedule(config: OptimizerConfig, num_steps: int) -> Callable[[jax.Array], jax.Array]:
  """The learning rate of a step, counted from 0. Linear warm-up from 0, its first
  step already above it; then

  step_decay: × decay_factor at each share `decay_at` of num_steps (0.316 at 80% and again at 90%);
  constant: the peak; cosine: half a cosine down to final_lr_fraction · peak at the last step.
  """
  decay_steps = [round(share * num_steps) for share in config.decay_at]

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.schedule == 'step_decay':
      factor = config.decay_factor ** sum((step >= at).astype(jnp.float32) for at in decay_steps)
    elif config.schedule == 'cosine':
      progress = (step + 1 - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
      cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
      factor = config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine
    else:
      factor = 1.0
    return config.peak_lr * warmup * factor

  return rate
