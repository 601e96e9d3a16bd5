"""A control plane for tests: what Flyte does with what was registered, on one machine. See docs/adr/0007."""
