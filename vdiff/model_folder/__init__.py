"""A model on disk: its card, its weights, and what it says to other programs."""
