"""The convolution ops on a CPU, a file an op: which path (deeplab_fast.ops.paths), and the calls it is made of.

The compiled kernels are internal ops, `X_cpu`, that fill a tensor given to them.
"""
