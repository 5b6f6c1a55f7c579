"""Seeded damage to image stores, and what becomes of those who read them.

Run by `benchmarks/fuzz_stores.py`.
"""
