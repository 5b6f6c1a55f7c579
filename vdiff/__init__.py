"""vdiff: progressive distillation. Train a diffusion model, then make it draw in 4 steps instead of 1024."""

__version__ = "0.1.0"
