"""The law of loss over training compute that the study scaling fits to its runs."""

import dataclasses
import math
from collections.abc import Sequence

_EXPONENTS = (0.01, 10.0)  # a curve is never flat

Curve = Sequence[tuple[float, float]]  # (training FLOPs, loss), FLOPs rising


@dataclasses.dataclass(frozen=True)
class Law:
  """log(loss − floor) = at − exponent · log(C ÷ middle), C the training FLOPs. Both models have one
  floor, since they see the same text; each has its own (at, exponent). `error`: root mean square of
  the residuals, in nats.
  """

  floor: float
  middle: float
  dense: tuple[float, float]
  moe: tuple[float, float]
  error: float

  def dense_loss(self, compute: float) -> float:
    return self._loss(self.dense, compute)

  def moe_loss(self, compute: float) -> float:
    return self._loss(self.moe, compute)

  def _loss(self, model, compute):
    at, exponent = model
    return self.floor + math.exp(at - exponent * math.log(compute / self.middle))

  def share(self, compute: float) -> float:
    """The share of a dense model's compute at which the MoE has the same loss."""
    (at, exponent), (moe_at, moe_exponent) = self.dense, self.moe
    x = math.log(compute / self.middle)
    return math.exp((moe_at - at + exponent * x) / moe_exponent - x)


def fit(dense: Curve, moe: Curve) -> Law:
  """The law fitted by least squares to all runs of a seed; the floor is at least 0."""
  import numpy as np
  from scipy.optimize import least_squares

  compute, loss = np.array([*dense, *moe]).T
  middle = float(np.exp(np.log(compute).mean()))
  x, is_moe = np.log(compute / middle), np.arange(len(compute)) >= len(dense)

  def left(law):
    floor, at, exponent, moe_at, moe_exponent = law
    logs = np.where(is_moe, moe_at - moe_exponent * x, at - exponent * x)
    return floor + np.exp(logs) - loss

  lowest = float(loss.min())
  start = (0.5 * lowest, *(math.log(0.5 * lowest), 0.1) * 2)
  bounds = ((0.0, *(-10.0, _EXPONENTS[0]) * 2), (lowest, *(10.0, _EXPONENTS[1]) * 2))
  found = least_squares(left, start, bounds=bounds, xtol=1e-12, ftol=1e-12, max_nfev=10000)
  floor, at, exponent, moe_at, moe_exponent = map(float, found.x)
  error = float(np.sqrt(np.mean(found.fun**2)))
  return Law(floor, middle, (at, exponent), (moe_at, moe_exponent), error)
