"""Measurements: the machine's limits, and kernels beside them."""
