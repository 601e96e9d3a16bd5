"""Memory of a training, item by item: the parts that strategies share."""
