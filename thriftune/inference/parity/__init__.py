"""Parity: whether an export, a saved, merged or served model is what was trained, told by the name of what differs."""
