"""What the Mosaic kernels share: rows as 32-bit words, gathers by row DMA,
grids over the tiles of a plan.
"""
