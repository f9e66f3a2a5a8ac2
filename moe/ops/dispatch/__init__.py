"""tokens_TD → rows_RD, sorted by expert; its transpose is combine with gates of one."""

from moe.ops.dispatch.api import dispatch

__all__ = ['dispatch']
