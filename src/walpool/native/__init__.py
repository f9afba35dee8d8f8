"""The compiled core: C twins of a few hot functions, and the one place that chooses between them and Python."""
