"""Blob stores: how they are reached, what they refuse, files under a prefix, and moving files in bounded memory."""
