"""Evaluating models: pictures are drawn once, measured in every way, and end in one table."""
