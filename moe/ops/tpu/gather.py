"""Row gathers by DMA from HBM, one block of rows ahead of their use."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_UNROLL = 8


def scratch(rows: int, words: int, word_type: jnp.dtype) -> list:
  """Two buffers of a block's words, and a semaphore for each."""
  return [pltpu.VMEM((2, rows, words), word_type), pltpu.SemaphoreType.DMA((2,))]


def fetch(
  source_IW, here_ref, ahead_ref, buffer_ref, semaphores, *, block, blocks: int, first, column=None
) -> jax.Array:
  """The words of the block's rows; starts the next block's DMAs. Call once per block, in order.

  Args:
    source_IW: words in HBM.
    here_ref, ahead_ref: (1, 1, rows) in SMEM: source row of each row of this block,
      and of the next.
    block, blocks, first: index of this block, the number of blocks,
      whether this is the first that the kernel fetches.
    column: first word of the wanted columns, as many as the buffer is wide; None for all.
  """
  rows, words = buffer_ref.shape[1:]
  slot = lax.rem(block, 2)

  def start(index_ref, slot):
    def copy(r, carry):
      row = pl.ds(index_ref[0, 0, r], 1)
      source = source_IW.at[row] if column is None else source_IW.at[row, pl.ds(column, words)]
      pltpu.make_async_copy(source, buffer_ref.at[slot, pl.ds(r, 1)], semaphores.at[slot]).start()
      return carry

    lax.fori_loop(0, rows, copy, None, unroll=min(_UNROLL, rows))

  pl.when(first)(lambda: start(here_ref, slot))
  # The other buffer is free: the words of the previous block have been used by now.
  pl.when(block + 1 < blocks)(lambda: start(ahead_ref, 1 - slot))
  # A semaphore counts bytes: one wait covers as many as all the row copies bring.
  pltpu.make_async_copy(buffer_ref.at[slot], buffer_ref.at[slot], semaphores.at[slot]).wait()
  return buffer_ref[slot]
