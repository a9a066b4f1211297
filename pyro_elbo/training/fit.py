"""The loop: it takes steps and remembers what they were made of; a loop of one's own could too."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from math import inf
from numbers import Integral
from time import perf_counter
from typing import Any

from tqdm import tqdm

from ..errors import StopTraining
from ..summary import Summary
from .checkpoint import Checkpoint, restore
from .feed import Feed, StepInput
from .history import History
from .interrupts import PatientInterrupt
from .run import Callback, Run

__all__ = ["fit"]

SHOWN = {"objective": "objective", "ELBO": "elbo", "rec.": "reconstruction", "KL": "kl"}
INTERRUPTED = "interrupted"
BAR_SECONDS = 0.5
BAR_DELAY = 1.0


def fit(
    stepper: Any,
    *args: Any,
    batches: Iterable[Any] | None = None,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> History:
    """Take steps, and remember what the bound was made of at each.

    ``fit(svi, x, num_steps=2000)`` gives every step the same arguments; ``fit(svi, batches=loader,
    num_epochs=20)`` gives each its batch: a tuple or list is spread over ``step``, a mapping
    becomes keywords, anything else is one argument. Ctrl-C ends training after the step that is
    being taken (a second one at once) and returns the history so far, as does
    :class:`~pyro_elbo.StopTraining` from a callback or the loss.

    A callback is called as ``callback(run)`` after each step, with a
    :class:`~pyro_elbo.training.Run`. Where it has them, ``start(run)`` is called before the first
    step, ``finish(run)`` of each that was started when training ends, however it ends, the last one
    first, and ``state_dict()`` and ``load_state_dict(state)`` make it part of a checkpoint.

    Args:
        stepper: Anything with ``step(...) -> loss``: Pyro's ``SVI``, ``CompiledSVI``,
            ``VariationalEM``. Where a call takes several steps (``steps_per_call``), each has a
            row, on the same arguments or batch, and callbacks are called after the last.
        *args: Of every step, where there are no batches.
        batches: What to go through in each epoch, anew in each: a DataLoader, a list.
        num_steps: The steps of the whole run, those before ``resume`` included.
        num_epochs: The epochs of the whole run; without batches each step is one.
        callbacks: Called in this order; a :class:`~pyro_elbo.training.Checkpoint` last.
        progress: Whether to show a bar with objective, ELBO, reconstruction, KL and weight.
        resume: A checkpoint to go on from.
        **kwargs: Of every step.

    Returns:
        A row for each step of the whole run.

    Raises:
        ValueError: There is no end, or one within a call of several steps, an epoch has no batches,
            a batch has other dtypes than the first, or the checkpoint is of another program;
            parameters are as before.
        TypeError: The stepper has no ``step``, there are both arguments and batches, or a callback
            cannot be called.

    Warns:
        UserWarning: Ctrl-C ended training; it ended before a schedule of the loss did; the
            checkpoint is of the last step, or of a run with another loss or weight.

    Law:
        Parameters, generators and the loss end as after a loop of ``stepper.step`` over the same
        arguments.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_elbo import TraceKL_ELBO, fit
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.zeros(len(x)))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc, 0.7))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceKL_ELBO())
        >>> history = fit(svi, torch.tensor([2., -1.]), num_steps=100, progress=False)
        >>> bool(history["elbo"][-20:].mean() > history["elbo"][:20].mean())
        True
    """
    _check(stepper, num_steps, num_epochs)
    _check_callbacks(callbacks)
    run = Run(stepper, num_steps)
    feed = Feed(args, kwargs, batches, num_epochs, run.steps_per_call)
    if resume is None:
        feed.check_calls(num_steps)
    ordered = sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))
    others = [callback for callback in ordered if not isinstance(callback, Checkpoint)]
    for callback in ordered:
        if isinstance(callback, Checkpoint):
            callback.attach(feed, others)
    if resume is not None:
        restore(resume, run, feed, ordered)
        _warn_if_over(run)
    with ExitStack() as started:
        for callback in ordered:
            _call(callback, "start", run)
            started.callback(_call, callback, "finish", run)
        stopped = _train(run, feed, ordered, progress)
    _warn_if_interrupted(run, stopped)
    _warn_if_unfinished(run)
    return run.recorder.history(stopped)


def _check(stepper: Any, num_steps: int | None, num_epochs: int | None) -> None:
    if not callable(getattr(stepper, "step", None)):
        raise TypeError(f"fit needs something with .step, such as pyro.infer.SVI; got {stepper!r}")
    if num_steps is None and num_epochs is None:
        raise ValueError("say when to end: num_steps=... or num_epochs=...")
    for name, value in (("num_steps", num_steps), ("num_epochs", num_epochs)):
        if value is not None and (not isinstance(value, Integral) or value < 1):
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks must be a list of callables, got {callbacks!r}; write [...]")
    for callback in callbacks:
        if isinstance(callback, type) or not callable(callback):
            raise TypeError(
                f"a callback must be called as callback(run); {callback!r} cannot: pass a function "
                "or an object of such a class, not the class"
            )


def _train(run: Run, feed: Feed, callbacks: Sequence[Any], progress: bool) -> str:
    """Take the steps; why they ended early, where they did."""
    stopped = ""
    bar = _Bar(run, run.num_steps or feed.num_steps, progress)
    try:
        with PatientInterrupt() as interrupt:
            if run.step < (run.num_steps or inf):
                _steps(run, feed, callbacks, bar, interrupt)
    except KeyboardInterrupt:
        stopped = f"{INTERRUPTED} after step {run.step}"
    except StopTraining as reason:
        stopped = str(reason)
    finally:
        bar.close()
    return stopped


def _steps(
    run: Run, feed: Feed, callbacks: Sequence[Any], bar: _Bar, interrupt: PatientInterrupt
) -> None:
    for given in feed:
        loss = _step(run, given)
        feed.place = given.place
        run.args, run.kwargs = given.args, given.kwargs
        run.epoch, run.batch = given.place.epoch, given.place.batch
        for callback in callbacks:
            callback(run)
        bar.show(loss, run.steps_per_call)
        interrupt.raise_if_pending()
        if run.step == run.num_steps:
            return


def _step(run: Run, given: StepInput) -> float:
    """Have the stepper called, and what it did recorded; its (last) loss."""
    run.is_whole = False
    start = perf_counter()
    try:
        loss: float = run.stepper.step(*given.args, **given.kwargs)
    except StopTraining:
        run.is_whole = True
        if hasattr(run.stepper, "last_summaries"):
            _record(run, given, start, _each(run.stepper))
        raise
    run.is_whole = True
    tells = hasattr(run.stepper, "last_summaries")
    _record(run, given, start, _each(run.stepper) if tells else [(loss, run.summary)])
    return loss


def _record(
    run: Run, given: StepInput, start: float, steps: Sequence[tuple[float, Summary | None]]
) -> None:
    seconds = (perf_counter() - start) / max(len(steps), 1)
    first = given.place.epoch - given.num_epochs + 1
    for number, (loss, summary) in enumerate(steps):
        run.step += 1
        epoch = min(first + number, given.place.epoch)
        row = {"step": run.step, "epoch": epoch, "seconds": seconds}
        run.recorder.add(row, loss, summary)


def _each(stepper: Any) -> list[tuple[float, Summary | None]]:
    """The loss and the totals of each step of a stepper's last call."""
    return list(zip(stepper.last_losses, stepper.last_summaries, strict=True))


def _call(callback: Any, name: str, run: Run) -> None:
    method = getattr(callback, name, None)
    if method is not None:
        method(run)


def _warn_if_over(run: Run) -> None:
    if run.num_steps is not None and run.step >= run.num_steps:
        warnings.warn(
            f"the checkpoint is of step {run.step} already, so that no step is taken: num_steps="
            f"{run.num_steps} is that of the whole run, those before it included",
            UserWarning,
            stacklevel=3,
        )


def _warn_if_interrupted(run: Run, stopped: str) -> None:
    if stopped.startswith(INTERRUPTED):
        of = "" if run.num_steps is None else f" of {run.num_steps}"
        warnings.warn(
            f"training was {stopped}{of}, by Ctrl-C; the history so far is returned",
            UserWarning,
            stacklevel=3,
        )


def _warn_if_unfinished(run: Run) -> None:
    for name, end in getattr(run.loss, "unfinished_schedules", {}).items():
        warnings.warn(
            f"training ended at step {run.loss.step_count}, and the schedule of {name} goes on to "
            f"step {end}: it is {run.loss.beta} now, so that the parameters do not maximise what "
            "its end would. Train on, or shorten the schedule",
            UserWarning,
            stacklevel=3,
        )


class _Bar:
    def __init__(self, run: Run, total: int | None, progress: bool) -> None:
        self._run, self._shown = run, 0.0
        self._loss: float | None = None
        interval = 0.1 if sys.stderr.isatty() else 10.0
        counts = {"total": total, "initial": run.step, "mininterval": interval}
        self._bar = tqdm(**counts, unit="step", disable=not progress, delay=BAR_DELAY)

    def show(self, loss: float, num_steps: int) -> None:
        """Count steps; now and then say where training stands."""
        self._loss = loss
        if self._bar.disable:
            return
        if perf_counter() - self._shown > BAR_SECONDS:
            self._shown = perf_counter()
            self._bar.set_postfix_str(self._words(loss), refresh=False)
        self._bar.update(num_steps)

    def close(self) -> None:
        """Say where training ended."""
        if not self._bar.disable and self._loss is not None:
            self._bar.set_postfix_str(self._words(self._loss), refresh=False)
        self._bar.close()

    def _words(self, loss: float) -> str:
        terms = self._run.terms
        if terms is None:
            return f"loss {loss:.4g}"
        words = [f"{label} {float(getattr(terms, name)):.4g}" for label, name in SHOWN.items()]
        betas = {site.beta for site in terms.sites.values() if site.beta is not None}
        return ", ".join([*words, *(f"β {beta:.3g}" for beta in sorted(betas)[:1])])
