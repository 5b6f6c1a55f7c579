"""Files that other programs wrote: what they hold, found out without running anything from them."""
