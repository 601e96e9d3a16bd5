"""A trained model in use: measured on held-out rows, and answering prompts."""
