"""WHAT trains and what comes out: one small module a method, and the table METHODS."""
