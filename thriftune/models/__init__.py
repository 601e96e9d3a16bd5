"""Base models: finding, fetching, checking, their shapes, loading, merging, exporting, publishing."""
