"""Causal attention within the documents of a row; the kernels are the platforms' own."""

from moe.ops.attention.api import attention

__all__ = ['attention']
