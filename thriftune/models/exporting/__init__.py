"""Exporting a model to other formats: the table EXPORTS, and a module for each kind of format."""
