"""Exports and parity, on tiny models of every architecture that is covered."""
