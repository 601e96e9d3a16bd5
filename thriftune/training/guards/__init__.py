"""Watching a training while it runs: divergence, stalls, resources that fill, and whose fault an error is."""
