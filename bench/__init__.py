"""Measurements, not tests: figures depend on the machine, so only ratios are quoted."""
