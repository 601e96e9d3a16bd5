"""Flyte tasks, one file each: bring inputs to the local disk, call one function of thriftune, return outputs."""

from tasks import log, run_files

# First: what goes wrong while the others are imported is shown, and shown shortly.
log.configure()
run_files.use_in_pyflyte()
