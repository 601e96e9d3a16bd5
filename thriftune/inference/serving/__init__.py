"""Serving a base model and adapters on it over HTTP: one decoder for all of them, behind an OpenAI-shaped door."""
