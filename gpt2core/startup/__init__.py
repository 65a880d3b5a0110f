"""Cold start optimizations."""
