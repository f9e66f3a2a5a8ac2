"""rows_RD, gates_TK → tokens_TD: the gated sum of each token's rows;
with gates of one, dispatch's transpose.
"""

from moe.ops.combine.api import combine

__all__ = ['combine']
