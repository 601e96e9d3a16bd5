"""The gate: base and tuned on the same items, what the difference is worth, and whether the result is published."""
