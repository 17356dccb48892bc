"""Compiled kernels and the data structures they use."""
