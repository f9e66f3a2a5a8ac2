"""The whole routed FFN (SwiGLU experts): Σ_k gate · FFN_expert(token), exact and dropless."""

from moe.ops.routed_ffn.api import routed_ffn
from moe.ops.routed_ffn.types import FEW, ExpertWeights

__all__ = ['FEW', 'ExpertWeights', 'routed_ffn']
