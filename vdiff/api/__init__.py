"""The Python API: what `import vdiff` offers. Thin: each name calls what the commands call."""
