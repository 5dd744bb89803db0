"""Triton kernels, one file an op. Empty until the first op has one."""
