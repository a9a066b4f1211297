"""A training step as one graph of operations on tensors, run in place of the program."""
