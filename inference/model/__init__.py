"""The model in use: loaded, verified, swapped, run."""
