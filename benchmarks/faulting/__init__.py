"""The fault campaign: draw, strike, look at the disk, complete the run, compare.

Run by `benchmarks/faults.py`.
"""
