"""Pictures: bytes of a file, uint8 [C, H, W], float in [-1, 1], and pages of many."""
