"""The whole routed FFN (SwiGLU experts): Σ_k gate · FFN_expert(token), exact and dropless."""

from moe.ops.routed_ffn.api import routed_ffn, routed_ffn_of_stack
from moe.ops.routed_ffn.of_some import routed_ffn_of_some
from moe.ops.routed_ffn.types import FEW, ExpertWeights

__all__ = ['FEW', 'ExpertWeights', 'routed_ffn', 'routed_ffn_of_some', 'routed_ffn_of_stack']
