"""Eager PyTorch runs the exported program as it is: the baseline that every figure is compared with."""
