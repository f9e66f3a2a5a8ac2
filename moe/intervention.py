"""Changes to a trained model's routing at evaluation, and which configs allow them. `moe.analysis`
applies them. No jax import: studies are checked here before anything is trained.
"""

import dataclasses
import math

from moe.config import Config, MoEConfig
from moe.errors import UserError


@dataclasses.dataclass(frozen=True)
class Intervention:
  """What to change; by default nothing. The changes combine.

  Figure 4 is masked_share = 0, 1/16, … 4/16; Section 4.5 is without_shared with one expert a token
  more than trained; Figure 5 is fewer experts_per_token.
  """

  # The share of the routed experts that is masked for each token: its most probable ones.
  # The token takes the K best of the rest.
  masked_share: float = 0.0
  experts_per_token: int | None = None  # K; None: as trained
  # Drops the shared experts; nothing takes their place unless K is raised.
  without_shared: bool = False

  def masked(self, num_experts: int) -> int:
    """M, the number of masked experts: masked_share · E to the nearest whole number, halves up:
    4, 8, 12, 16 of 63 at 1/16 … 4/16.
    """
    return math.floor(self.masked_share * num_experts + 0.5)

  def chosen(self, moe: MoEConfig) -> int:
    """K, the number of routed experts a token."""
    return moe.experts_per_token if self.experts_per_token is None else self.experts_per_token


FIELDS = tuple(field.name for field in dataclasses.fields(Intervention))


def check(config: Config, intervention: Intervention) -> None:
  """Raises UserError for what no model of this config can do, whatever its router."""
  moe, share, asked = config.moe, intervention.masked_share, intervention.experts_per_token

  def require(condition, message):
    if not condition:
      raise UserError(message)

  require(
    _is_number(share) and 0 <= share < 1,
    f'masked_share={share!r} must be a number, at least 0 and below 1',
  )
  require(
    isinstance(intervention.without_shared, bool),
    f'without_shared={intervention.without_shared!r} must be True or False',
  )
  require(
    intervention == Intervention() or config.model.num_moe_layers > 0,
    f'model.num_dense_layers={config.model.num_dense_layers} leaves no MoE layer '
    'whose routing could be changed',
  )
  if asked is not None:
    require(
      isinstance(asked, int) and not isinstance(asked, bool) and 1 <= asked <= moe.num_experts,
      f'experts_per_token={asked!r} must be a whole number from 1 to '
      f'moe.num_experts={moe.num_experts}',
    )
  if share > 0:
    require(
      moe.num_experts > 0, f'masked_share={share} needs routed experts, and moe.num_experts is 0'
    )
    require(
      moe.router != 'hash',
      f"masked_share={share} needs a router that ranks all experts, and moe.router is 'hash': "
      'leave it 0.0',
    )
  check_room(moe, intervention.chosen(moe), intervention.masked(moe.num_experts))
  if intervention.without_shared:
    require(
      moe.num_shared_experts > 0,
      'without_shared=True needs shared experts, and moe.num_shared_experts is 0',
    )
    require(
      moe.num_experts > 0,
      'without_shared=True leaves no expert at all, as moe.num_experts is 0',
    )


def check_room(moe: MoEConfig, chosen: int, masked: int) -> None:
  """Raises UserError if masking M experts leaves fewer than K to choose from, in total or within
  the device groups that moe.device_limit allows.
  """
  experts = moe.num_experts
  if chosen + masked > experts:
    raise UserError(
      f'masked_share, {masked} of moe.num_experts={experts}, leaves {experts - masked} to choose '
      f'from, fewer than the {chosen} that each token needs: lower it, or experts_per_token'
    )
  within = moe.device_limit * (experts // moe.device_groups)
  if within and chosen + masked > within:
    raise UserError(
      f'experts_per_token={chosen} and {masked} masked experts (masked_share) are more than the '
      f'{within} experts of moe.device_limit={moe.device_limit} groups: lower them'
    )


def _is_number(value):
  return isinstance(value, int | float) and not isinstance(value, bool)
