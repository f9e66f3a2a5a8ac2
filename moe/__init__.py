"""DeepSeekMoE (arXiv 2401.06066) in JAX and Flax. Importing this package starts no device."""
