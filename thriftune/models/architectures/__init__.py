"""Architectures of public models (values of their config.json), so that a plan needs no network."""
