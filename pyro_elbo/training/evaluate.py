"""How good the bound is on data, with everything left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from ..evidence.modes import at_rest, check_made, forgetting, in_eval_mode
from ..site_terms import subsampling
from ..summary import summary_of
from ..terms import ELBOTerms
from .feed import Feed
from .history import History
from .recorder import Recorder
from .rng import RNG
from .run import loss_of

__all__ = ["evaluate"]


def evaluate(
    stepper: Any, *args: Any, batches: Iterable[Any] | None = None, **kwargs: Any
) -> History:
    r"""The terms at these arguments, or at each batch: no gradient, nothing moves.

    Modules are in eval mode, so that batch norm and dropout are at rest; buffers, generators and
    the loss's schedule stay as they were, and parameters that are made here are forgotten.

    Args:
        stepper: What has ``evaluate_loss(...) -> loss``: Pyro's ``SVI``, ``VariationalEM``.
        *args: What the step takes, where there are no batches.
        batches: What to go through once, as in :func:`~pyro_elbo.fit`.
        **kwargs: What the step takes.

    Returns:
        A row for each batch, in nats. Where the model has the batch's data alone, the data set's
        ELBO is the sum of the column; where a plate scales batches of one size up to the data set,
        its mean.

    Warns:
        UserWarning: A plate has a part of its data (``subsample_size``): the numbers are those of
            one minibatch, and the same each time.

    Raises:
        ValueError: There are no batches; or the guide is an AutoGuide that has not run yet.
        TypeError: There are both arguments and batches; or what is given is no stepper.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_elbo import TraceKL_ELBO
        >>> from pyro_elbo.training import evaluate
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5 ** 0.5))
        >>> svi = SVI(model, guide, pyro.optim.Adam({}), TraceKL_ELBO(num_particles=10))
        >>> held_out = evaluate(svi, batches=[torch.zeros(3), torch.ones(2)])
        >>> len(held_out), held_out["kl"].round(3).tolist()
        (2, [0.29, 0.443])
    """
    if not hasattr(stepper, "evaluate_loss"):
        raise TypeError(
            f"evaluate takes a stepper, as in evaluate(SVI(model, guide, optim, loss), x), and no "
            f"{type(stepper).__name__}"
        )
    recorder, generators = Recorder(), Feed(args, kwargs, batches, 1).generators
    before, loss = RNG.now(generators), loss_of(stepper)
    programs = getattr(stepper, "model", None), getattr(stepper, "guide", None)
    check_made(programs[1])
    try:
        with forgetting(), in_eval_mode(*programs), at_rest(loss), torch.no_grad():
            for step, given in enumerate(Feed(args, kwargs, batches, 1), 1):
                value = stepper.evaluate_loss(*given.args, **given.kwargs)
                terms = loss.terms if hasattr(loss, "decompose") else None
                summary = None if terms is None else summary_of(terms)
                recorder.add({"step": step, "epoch": 0}, value, summary)
    finally:
        before.restore(generators)
    if batches is None and terms is not None:
        _warn_of_minibatches(terms)
    return recorder.history()


def _warn_of_minibatches(terms: ELBOTerms) -> None:
    atoms = (atom for site in terms.sites.values() for atom in site.atoms)
    frames = {frame.name: frame for atom in atoms for frame in atom.stack}
    for name, frame in frames.items():
        if subsampling(frame) != 1:
            warnings.warn(
                f"evaluate: plate {name!r} has {frame.size} of its {frame.full_size} data, so that "
                "these are the numbers of one minibatch; for those of all data evaluate a stepper "
                "whose model has no subsample_size, or take the mean over batches=...",
                UserWarning,
                stacklevel=3,
            )
