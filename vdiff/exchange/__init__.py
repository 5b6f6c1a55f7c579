"""Models in and out: a model of another program becomes one of vdiff, and the other way round,
and both are proved.
"""
