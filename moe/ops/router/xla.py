"""The router's plain XLA is its reference, which wastes no factor of E."""

from moe.ops.router.reference import route

__all__ = ['route']
