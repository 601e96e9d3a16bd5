"""The workflows that people run, one file each."""
