"""What the Triton kernels share: blocks of memory, matrix products, tile sizes,
and how a kernel is called.
"""
