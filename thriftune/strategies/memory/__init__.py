"""What a training holds in memory, item by item: what strategies have in common."""
