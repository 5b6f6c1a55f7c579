"""The chain: the base, then one student after another."""
