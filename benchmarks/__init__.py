"""What a step costs, beside Pyro, hand-written PyTorch, NumPyro and PyMC: ``make bench``."""
