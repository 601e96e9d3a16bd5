"""What fits, and what it costs: catalogue, offers, memory, search, suggestions."""
