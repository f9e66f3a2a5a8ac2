"""Compiles every kernel for TPUs and GPUs that this machine does not have."""
