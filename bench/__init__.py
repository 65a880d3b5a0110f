"""Measurements, not tests: figures depend on the machine, so ratios are what counts."""
