"""Data, fine-tuning, and the accuracy that comes of it."""
