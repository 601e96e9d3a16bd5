"""Trainings that are killed, cut off and damaged, in real processes, each beside one that nobody disturbed."""
