"""logits_BLE → gates, chosen experts and the sums of the balance losses, in one pass."""

from moe.ops.router.api import route
from moe.ops.router.balanced import force_balance
from moe.ops.router.types import Routing, RoutingStats

__all__ = ['Routing', 'RoutingStats', 'force_balance', 'route']
