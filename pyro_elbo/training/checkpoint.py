"""A run of training in one file: written whole, read without running code, resumed bit for bit."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .feed import Feed, Place
from .files import atomic_write, check_writable
from .history import History
from .recorder import Recorder
from .rng import RNG
from .run import Run
from .state import StepperState, parameters_seen

__all__ = ["Checkpoint", "read_checkpoint", "restore"]

FORMAT = "pyro_elbo checkpoint"
VERSION = 1


class Checkpoint:
    """Writes all that a run needs to go on: ``fit(..., callbacks=[Checkpoint(path)])``.

    Parameters, buffers of model and guide where they are modules (or methods of one), the
    optimisers, the loss's step count, the history, the states of callbacks that have
    ``state_dict()``, the place in the data, and every random number generator. ``fit(...,
    resume=path)`` goes on from there: give the same arguments, and the same callbacks.

    Args:
        path: The file; its folder must exist.
        every: Written after each step that is a multiple of this, and when training ends.
        modules: Modules that neither model nor guide hold (a plain function's networks) whose
            buffers belong to the run, by name.

    Raises:
        ValueError: ``every`` is below 1.
        OSError: Before the first step: the file could not be written.
        TypeError: The stepper has no optimiser of Pyro's kind.

    Law:
        A run that is killed at any moment and resumed ends at the parameters, optimiser state and
        history (but for ``seconds``) of the run that was not, bit for bit, on one kind of machine.
        A dataset that draws random numbers in workers that outlive an epoch
        (``persistent_workers=True``) is an exception: no checkpoint can hold those workers' state.

    Example:
        >>> import tempfile, torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_elbo import TraceKL_ELBO, fit
        >>> from pyro_elbo.training import Checkpoint
        >>> def model(x):
        ...     pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0., 1.)), 1.), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.)), 0.7))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceKL_ELBO())
        >>> path = tempfile.mkdtemp() + "/run.ckpt"
        >>> x = torch.tensor(2.)
        >>> first = fit(svi, x, num_steps=30, callbacks=[Checkpoint(path)], progress=False)
        >>> more = fit(svi, x, num_steps=50, resume=path, progress=False)
        >>> len(first), len(more), int(more["step"][-1])
        (30, 50, 50)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int = 100,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        self.path, self.every = Path(path), every
        self.modules: Mapping[str, nn.Module] = dict(modules or {})
        self._feed: Feed | None = None
        self._others: Sequence[Any] = ()
        self._written = 0

    def attach(self, feed: Feed, callbacks: Sequence[Any]) -> None:
        """What ``fit`` tells before the first step: where the data and other callbacks are."""
        self._feed, self._others, self._written = feed, callbacks, 0
        feed.keeps_rng = True

    def start(self, run: Run) -> None:
        """Refuse what could not be written or read."""
        check_writable(self.path)
        StepperState(run.stepper, self.modules)

    def __call__(self, run: Run) -> None:
        """Write, where it is time."""
        if run.step % self.every == 0:
            self._write(run)

    def finish(self, run: Run) -> None:
        """Write the end, but for a step that was broken off."""
        if run.is_whole and run.step != self._written:
            self._write(run)

    def _write(self, run: Run) -> None:
        assert self._feed is not None
        place = self._feed.place
        history = run.history
        content = {
            "format": FORMAT,
            "version": VERSION,
            "step": run.step,
            "place": [place.epoch, place.batch],
            "epoch_rng": place.epoch_rng and dict(place.epoch_rng.state),
            "rng": dict(RNG.now(self._feed.generators).state),
            "objective": _objective_of(run),
            "history": {name: torch.from_numpy(v) for name, v in history.columns.items()},
            "callbacks": states_of(self._others),
            **StepperState(run.stepper, self.modules).read(),
        }
        with atomic_write(self.path) as file:
            torch.save(content, file)
        self._written = run.step


def states_of(callbacks: Sequence[Any]) -> dict[str, Any]:
    """The state of each callback that has one, by its place and kind."""
    return {
        f"{i}: {type(callback).__name__}": callback.state_dict()
        for i, callback in enumerate(callbacks)
        if hasattr(callback, "state_dict")
    }


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint holds, read without running any code of the file's.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is truncated, is no checkpoint, or has a version that cannot be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no checkpoint {path}; leave resume= out of a first run"
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is no checkpoint, or was cut off: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of pyro_elbo")
    if content["version"] != VERSION:
        raise ValueError(
            f"{path} is a checkpoint of version {content['version']}; this package reads {VERSION}"
        )
    return content


def restore(path: str | os.PathLike[str], run: Run, feed: Feed, callbacks: Sequence[Any]) -> None:
    """Put a run where a checkpoint left it; where it cannot, everything is as before.

    Args:
        path: The file.
        run: The run, before its first step.
        feed: Its data.
        callbacks: Its callbacks, checkpoints left out.

    Raises:
        ValueError: The file is not to be used, is of another program, or the run would not end
            where a call of the stepper does.
    """
    content = read_checkpoint(path)
    feed.check_calls(run.num_steps, content["step"])
    modules = {n: m for c in callbacks if isinstance(c, Checkpoint) for n, m in c.modules.items()}
    others = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    state = StepperState(run.stepper, modules)
    _check_callbacks(content["callbacks"], others)
    epoch_rng = content["epoch_rng"] and RNG(content["epoch_rng"])
    before, place = RNG.now(feed.generators), feed.place
    try:
        feed.resume(Place(content["place"][0], content["place"][1], epoch_rng))
        seen = _first_run(run, feed)
        state.check(content, seen)
    except BaseException:
        feed.resume(place)
        before.restore(feed.generators)
        raise
    state.write(content, seen)
    _warn_if_other_objective(content.get("objective"), run)
    for i, callback in enumerate(others):
        if hasattr(callback, "load_state_dict"):
            callback.load_state_dict(content["callbacks"][f"{i}: {type(callback).__name__}"])
    history = {name: values.numpy() for name, values in content["history"].items()}
    run.recorder = Recorder(History(history))
    run.step = content["step"]
    RNG(content["rng"]).restore(feed.generators)


def _objective_of(run: Run) -> str:
    """The loss and its weight, in words; without those that have none."""
    words = f"{type(run.loss).__name__}(beta={getattr(run.loss, '_beta', None)!r})"
    return type(run.loss).__name__ if " at 0x" in words else words


def _warn_if_other_objective(saved: str | None, run: Run) -> None:
    own = _objective_of(run)
    if saved is not None and saved != own:
        warnings.warn(
            f"the checkpoint is of a run with the loss {saved}, and goes on with {own}: its "
            "history is of both",
            UserWarning,
            stacklevel=4,
        )


def _first_run(run: Run, feed: Feed) -> dict[str, Any]:
    """The program's parameters, made by a run of it where they are not there yet."""
    first = feed.first()
    evaluate: Callable[..., Any] = run.stepper.evaluate_loss
    return parameters_seen(lambda: evaluate(*first.args, **first.kwargs))


def _check_callbacks(saved: Mapping[str, Any], callbacks: Sequence[Any]) -> None:
    own = states_of(callbacks).keys()
    if saved.keys() != own:
        raise ValueError(
            f"the checkpoint has the states of the callbacks {sorted(saved)}, here are "
            f"{sorted(own)}; resume with the same callbacks in the same order"
        )
