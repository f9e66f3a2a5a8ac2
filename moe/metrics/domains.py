"""The training loss by domain of the text. B sequences, L tokens each, J domains."""

from collections.abc import Sequence

import jax
import numpy as np

from moe.metrics.telemetry import Reading, Telemetry


def domain_telemetry(
  losses_BL: jax.Array, weights_BL: jax.Array, domains_BJ: jax.Array | None
) -> Telemetry:
  """Σ weight · loss, in nats, and Σ weight of each domain, both (J,); {} if `domains_BJ` is None.

  losses_BL: the tokens' losses. The other arguments are fields of `Batch`.
  """
  if domains_BJ is None:
    return {}
  # Sums, not a matrix product: some chips round its operands.
  by_domain = lambda x_BL: (x_BL.sum(axis=1, keepdims=True) * domains_BJ).sum(axis=0)
  return {
    'domain_loss': Reading(by_domain(losses_BL * weights_BL), 'sum'),
    'domain_targets': Reading(by_domain(weights_BL), 'sum'),
  }


def values(telemetry: Telemetry) -> dict[str, jax.Array]:
  """A step's metrics: NAME_J for every reading."""
  return {f'{name}_J': reading.value for name, reading in telemetry.items()}


def loss_by_domain(metrics: dict, domains: Sequence[str]) -> dict[str, dict[str, float]]:
  """{'loss_by_domain': {domain: nats a target token}}, for domains with a target in the step.

  Removes the sums, NumPy arrays, from the step's metrics. `domains`: the names, in the order of J.
  """
  losses_J, targets_J = metrics.pop('domain_loss_J'), metrics.pop('domain_targets_J')
  sums = zip(domains, np.asarray(losses_J), np.asarray(targets_J), strict=True)
  return {'loss_by_domain': {name: float(loss / n) for name, loss, n in sums if n != 0}}
