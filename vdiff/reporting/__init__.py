"""Pages and pictures that show people what a run has come to."""
