"""Files and folders that are there whole or not at all, and how vdiff knows its own."""
