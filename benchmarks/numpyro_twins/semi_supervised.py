"""A semi-supervised VAE: the class is summed out with the guide's probabilities as weights."""

from __future__ import annotations

from typing import Any

import jax
import numpyro
import numpyro.distributions as dist
from jax import numpy as jnp

from .layers import initial, multilayer
from .vae import NUM_PIXELS, NUM_UNITS

__all__ = ["program"]

CLASSES, HIDDEN = 10, 256


def joined(first: Any, second: Any) -> Any:
    """Two arrays side by side, their batches broadcast."""
    batch = jnp.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    both = [jnp.broadcast_to(array, (*batch, array.shape[-1])) for array in (first, second)]
    return jnp.concatenate(both, -1)


def program() -> tuple[Any, Any]:
    """Model and guide; each unlabelled image has a latent for each class."""
    layers = {
        "classifier": initial(0, NUM_PIXELS, HIDDEN, CLASSES),
        "encoder": initial(1, NUM_PIXELS + CLASSES, HIDDEN, 2 * NUM_UNITS),
        "decoder": initial(2, NUM_UNITS + CLASSES, HIDDEN, NUM_PIXELS),
    }
    prior = dist.Normal(jnp.zeros(NUM_UNITS), 1.0).to_event(1)
    classes = jnp.eye(CLASSES)[:, None]

    def log_classes(x: Any) -> Any:
        classifier = numpyro.param("classifier", layers["classifier"])
        return jax.nn.log_softmax(multilayer(classifier, x), -1).T

    def encode(x: Any, y: Any) -> Any:
        encoder = numpyro.param("encoder", layers["encoder"])
        loc, log_scale = jnp.split(multilayer(encoder, joined(x, y)), 2, -1)
        return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)

    def decode(z: Any, y: Any) -> Any:
        decoder = numpyro.param("decoder", layers["decoder"])
        return dist.Bernoulli(logits=multilayer(decoder, joined(z, y))).to_event(1)

    def model(unlabelled: Any, labelled: Any, y: Any) -> None:
        log_q = log_classes(unlabelled)
        with (
            numpyro.plate("classes", CLASSES, dim=-2),
            numpyro.plate("unlabelled", len(unlabelled)),
        ):
            with numpyro.handlers.scale(scale=jnp.exp(log_q)):
                z = numpyro.sample("z", prior)
                numpyro.sample("x", decode(z, classes), obs=unlabelled)
            numpyro.factor("class", jnp.exp(log_q) * (-jnp.log(CLASSES) - log_q))
        with numpyro.plate("labelled", len(labelled)):
            z = numpyro.sample("known_z", prior)
            numpyro.sample("known_x", decode(z, y), obs=labelled)

    def guide(unlabelled: Any, labelled: Any, y: Any) -> None:
        weights = numpyro.handlers.scale(scale=jnp.exp(log_classes(unlabelled)))
        plates = (
            numpyro.plate("classes", CLASSES, dim=-2),
            numpyro.plate("unlabelled", len(unlabelled)),
        )
        with plates[0], plates[1], weights:
            numpyro.sample("z", encode(unlabelled, classes))
        with numpyro.plate("labelled", len(labelled)):
            numpyro.sample("known_z", encode(labelled, y))

    return model, guide
