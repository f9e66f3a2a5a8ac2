"""Causal attention within the documents of a row; the kernels are those that JAX ships."""

from moe.ops.attention.api import attention

__all__ = ['attention']
