"""What people run, one file a workflow."""
