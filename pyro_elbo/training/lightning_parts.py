"""What training by Lightning needs of its trainer, and gives to its logger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from ..elbo.base import ViewELBO
from .feed import spread
from .rng import RNG, loader_generators

__all__ = ["first_batch", "leave_random_numbers", "logged", "size_of"]

TERMS = ("objective", "elbo", "reconstruction", "kl", "weighted_kl")


def logged(elbo: ViewELBO) -> dict[str, Any]:
    """What is logged of the last evaluation, by name: terms in nats, and weights."""
    beta = elbo.beta
    weights = (
        {f"beta_{site}": weight for site, weight in beta.items()}
        if isinstance(beta, Mapping)
        else {"beta": beta}
    )
    return {**{name: getattr(elbo.terms, name) for name in TERMS}, **weights}


def first_batch(trainer: Any, stage: str) -> Any:
    """The first batch of a stage, which is given again; no random number is drawn.

    Raises:
        ValueError: There is none, or the data can be gone through only once.
    """
    loops = {
        "fit": trainer.fit_loop,
        "validate": trainer.validate_loop,
        "test": trainer.test_loop,
        "predict": trainer.predict_loop,
    }
    loaders = CombinedLoader(loops[stage]._data_source.dataloader(), "sequential").flattened
    if not loaders or isinstance(loaders[0], Iterator):
        raise ValueError(
            "the first batch makes the parameters, and data that can be gone through once would "
            "lose it; pass a batch as LightningELBO(..., example=batch)"
        )
    generators = loader_generators(loaders[0])
    now = RNG.now(generators)
    batch = next(iter(loaders[0]), None)
    now.restore(generators)
    if batch is None:
        raise ValueError("the data have no batch; give a loader that gives some")
    return batch


def leave_random_numbers(validation: Any) -> None:
    """Have a validation that a resumed run passes over draw nothing from training's stream."""
    pass_over: Any = getattr(validation, "increment_progress_to_evaluation_end", None)

    def quietly() -> None:
        now = RNG.now()
        pass_over()
        now.restore()

    if pass_over is not None:
        validation.increment_progress_to_evaluation_end = quietly


def size_of(batch: Any) -> int:
    """How many data a batch has: the length of its first tensor."""
    args, kwargs = spread(batch)
    parts = [*args, *kwargs.values()]
    return next((len(part) for part in parts if isinstance(part, Tensor) and part.dim()), 1)
