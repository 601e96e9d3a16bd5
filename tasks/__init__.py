"""Flyte tasks, one file each: bring inputs to local disk, call one function of thriftune, hand back outputs."""
