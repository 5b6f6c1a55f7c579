"""A run folder: what lies in it, who works in it, and where a training can go on."""
