"""The files that hold a model."""
