"""vdiff: train a diffusion model on pictures, then distill it into one that needs 4 steps instead of 1024."""

__version__ = "0.1.0"
