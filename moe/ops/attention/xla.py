"""attention in plain XLA."""

from moe.ops.attention.reference import attention

__all__ = ['attention']
