"""The one form of a model: nodes and tensors."""
