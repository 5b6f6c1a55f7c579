"""The system vdiff runs on: its cores, its threads, its terminal, its package index."""
