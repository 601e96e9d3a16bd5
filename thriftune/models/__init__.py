"""A base model: found, fetched, checked, its shape, loaded, merged, exported, published."""
