"""Watch a training while it runs: divergence, stalls, resources that fill up, and whose fault an error is."""
