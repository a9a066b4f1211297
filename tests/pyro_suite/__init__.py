"""Pyro's own tests, run with these losses in the place of Pyro's."""
