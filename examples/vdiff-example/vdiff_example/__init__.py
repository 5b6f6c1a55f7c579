"""One kind of everything that vdiff lets other packages bring."""
