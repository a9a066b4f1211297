"""The demo: a variational autoencoder on real images, under each loss; ``python -m pyro_elbo``."""
