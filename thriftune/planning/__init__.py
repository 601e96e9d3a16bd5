"""Which machines a run fits on, and what they cost: catalogue, offers, memory, search, suggestions."""
