"""The bound on data that training does not see, every so many steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..evidence.checks import check_count
from .evaluate import evaluate
from .history import History
from .run import Run
from .streams import OwnStream

__all__ = ["EvaluateOn"]

REDUCTIONS: dict[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean}


class EvaluateOn:
    """Evaluates the terms on held-out data, and leaves training as it would have been.

    As :func:`~pyro_elbo.training.evaluate`: modules in eval mode, no gradient, no step of a
    schedule; its random numbers are a stream of their own.

    Args:
        *args: What the step takes, where there are no batches.
        batches: What to go through, each time anew.
        every: At steps that are multiples of this.
        reduction: How the batches make one number of each term: ``"sum"`` where the model has a
            batch's data alone, ``"mean"`` where a plate scales batches, all of one size, up to the
            data set.
        seed: Of its random numbers.
        **kwargs: What the step takes.

    Raises:
        ValueError: ``every`` is below 1, or ``reduction`` is neither.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_elbo import TraceKL_ELBO, fit
        >>> from pyro_elbo.training import EvaluateOn
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(slope * x, 0.7))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceKL_ELBO())
        >>> held_out = EvaluateOn(torch.tensor([1., -2.]), every=10)
        >>> _ = fit(svi, torch.tensor([2., 0.5, -1.]), num_steps=30, callbacks=[held_out],
        ...         progress=False)
        >>> held_out.history["step"].tolist(), bool(held_out.history["elbo"][-1] > -7.)
        ([10.0, 20.0, 30.0], True)
    """

    def __init__(
        self,
        *args: Any,
        batches: Iterable[Any] | None = None,
        every: int = 100,
        reduction: str = "sum",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_count("every", every, 1)
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {sorted(REDUCTIONS)}, not {reduction!r}")
        self._args, self._batches, self._kwargs = args, batches, kwargs
        self._every, self._reduce = every, REDUCTIONS[reduction]
        self._stream = OwnStream(seed)
        self._rows: list[dict[str, float]] = []

    def start(self, run: Run) -> None:
        """Forget the evaluations of an earlier run, unless this one goes on from it."""
        if not run.step:
            self._rows = []
            self._stream.restart()

    def __call__(self, run: Run) -> None:
        """Evaluate, where it is time."""
        if run.step % self._every:
            return
        with self._stream.on():
            found = evaluate(run.stepper, *self._args, batches=self._batches, **self._kwargs)
        terms = {n: v for n, v in found.columns.items() if n not in ("step", "epoch")}
        betas = {n: v for n, v in terms.items() if n.split(":")[0] == "beta"}
        row = {name: float(self._reduce(values)) for name, values in terms.items()}
        row |= {name: float(values[0]) for name, values in betas.items()}
        self._rows.append({"step": run.step, "epoch": run.epoch, **row})

    @property
    def history(self) -> History:
        """A row for each evaluation."""
        names = dict.fromkeys(name for row in self._rows for name in row)
        return History({n: np.array([row.get(n, np.nan) for row in self._rows]) for n in names})

    @property
    def latest(self) -> float:
        """The ELBO at the last evaluation, in nats.

        Raises:
            RuntimeError: There was none yet.
        """
        if not self._rows:
            raise RuntimeError(f"nothing was evaluated yet; the first time is step {self._every}")
        return self._rows[-1]["elbo"]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"rows": self._rows, "stream": self._stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._rows = [dict(row) for row in state["rows"]]
        self._stream.load_state_dict(state["stream"])
