"""Eager PyTorch runs the network's own module as it is: the baseline that every figure is compared with."""
