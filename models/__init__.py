"""Readers of models' files, each format in a file of its own: `open_model`."""
