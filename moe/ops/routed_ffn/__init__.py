"""The whole routed FFN (SwiGLU experts) behind one signature: reference | grouped | scan."""

from moe.ops.routed_ffn.api import routed_ffn
from moe.ops.routed_ffn.types import ExpertWeights

__all__ = ['ExpertWeights', 'routed_ffn']
