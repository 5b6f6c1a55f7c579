"""Layers that compute faster on a CPU. Delete this folder, and results agree to rounding."""
