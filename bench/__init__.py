"""Benchmarks. Times depend on the machine: compare ratios."""
