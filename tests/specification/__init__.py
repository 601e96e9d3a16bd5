"""The specification that Flyte registers, field by field: what `pyflyte package` makes of the package `workflows`."""
