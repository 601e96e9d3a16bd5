"""Benchmarks: items become requests, a model answers them, and every item has its result."""
