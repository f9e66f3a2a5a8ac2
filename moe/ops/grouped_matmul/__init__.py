"""rows_RD × weights_EDF → rows_RF: every row times the matrix of its group."""

from moe.ops.grouped_matmul.api import grouped_matmul

__all__ = ['grouped_matmul']
