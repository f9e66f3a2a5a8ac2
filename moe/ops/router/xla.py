"""The router's plain XLA is its reference: nothing in it is O(E) more than it must be."""

from moe.ops.router.reference import route

__all__ = ['route']
