"""Triton kernels and their launchers, one file an op; they need a GPU, and Triton, which torch for CUDA brings.

`choices` has the tables of what runs where, `implicit_gemm` what the kernels of both ops share.
The package is installed as `deeplab_fast.kernels`; imports inside it are relative, so that they hold by either name.
"""
