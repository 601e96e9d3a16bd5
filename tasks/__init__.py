"""Flyte tasks, one file each: bring inputs to the local disk, call one function of thriftune, return outputs."""
