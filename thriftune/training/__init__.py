"""The one training loop: trainer, attempt, guards, row order, collation, and the page of a training."""
