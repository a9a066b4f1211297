"""What a run of training was made of, step by step: labelled columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..interop import to_dataset
from ..tables import table
from .files import atomic_write

__all__ = ["History"]

Floats = NDArray[np.float64]
SITE_KL, SITE_BETA = "kl:", "beta:"
SHOWN = ("step", "epoch", "objective", "elbo", "reconstruction", "kl", "beta")
VERSION = 1
UNREADABLE = (OSError, KeyError, ValueError, EOFError, AttributeError, TypeError, BadZipFile)


@dataclass(eq=False)
class History:
    r"""Labelled columns with one entry for each step, shape [T]; terms in nats, as in ELBOTerms.

    ``history["elbo"]`` is a column, as are ``step`` (the number of steps taken, from 1), ``epoch``
    (from 0), ``objective``, ``reconstruction``, ``kl``, ``weighted_kl``, ``entropy``,
    ``expected_log_joint``, ``expected_log_prior``, ``beta`` (nan where the latents' weights
    differ), ``num_data`` (what the terms are a sum over: the data set, or the batch where no plate
    scales it up; nan where the observed sites share no one plate) and ``seconds``;
    ``kl_by_site["z"]`` and ``beta_by_site["z"]`` are a site's own, nan at steps without it. A loss
    of Pyro's own leaves the terms out, and ``objective`` is minus the loss.

    Args:
        columns: The columns by name; a site's are ``kl:<site>`` and ``beta:<site>``.
        stopped: Why training ended before its last step; empty where it did not.

    Law:
        ``elbo == reconstruction - kl == expected_log_joint + entropy`` to rounding, and
        ``objective == reconstruction - weighted_kl``, at every step.

    Example:
        >>> history = History({"step": [1, 2], "elbo": [-3.0, -2.5], "kl:z": [0.0, 0.5]})
        >>> history["elbo"][-1], history.kl_by_site["z"].tolist(), len(history)
        (np.float64(-2.5), [0.0, 0.5], 2)
    """

    columns: Mapping[str, Floats] = field(default_factory=dict)
    stopped: str = ""

    def __post_init__(self) -> None:
        arrays = {name: np.asarray(values, float) for name, values in self.columns.items()}
        if len({array.shape for array in arrays.values()}) > 1 or any(
            array.ndim != 1 for array in arrays.values()
        ):
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(f"columns must be vectors of one length, got shapes {shapes}")
        self.columns = arrays

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> Floats:
        if name not in self.columns:
            raise KeyError(f"no column {name!r}; the columns are {list(self.columns)}")
        return self.columns[name]

    @property
    def kl_by_site(self) -> dict[str, Floats]:
        """The KL of each latent site, unweighted."""
        return self._of_sites(SITE_KL)

    @property
    def beta_by_site(self) -> dict[str, Floats]:
        """The weight of each latent site."""
        return self._of_sites(SITE_BETA)

    def to_pandas(self) -> Any:
        """A :class:`pandas.DataFrame` with the steps as index."""
        import pandas  # type: ignore[import-untyped]

        frame = pandas.DataFrame(dict(self.columns))
        whole = [name for name in ("step", "epoch") if name in self.columns]
        frame = frame.astype(dict.fromkeys(whole, int))
        return frame.set_index("step") if "step" in whole else frame

    def to_xarray(self) -> Any:
        """An :class:`xarray.Dataset` over the steps; KL and weights by site have a dim of sites."""
        sites = list(self.kl_by_site)
        gap = np.full(len(self), np.nan)
        variables: dict[str, Any] = {
            name: (("step",), values)
            for name, values in self.columns.items()
            if name != "step" and not name.startswith((SITE_KL, SITE_BETA))
        }
        for name, by_site in (("kl", self.kl_by_site), ("beta", self.beta_by_site)):
            if by_site:
                stacked = np.stack([by_site.get(site, gap) for site in sites])
                variables[f"{name}_by_site"] = (("site", "step"), stacked)
        coords: dict[str, Any] = {"site": sites} if sites else {}
        if "step" in self.columns:
            coords["step"] = self["step"].astype(int)
        return to_dataset(variables, coords, {"stopped": self.stopped})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as ``.npz``; the file is whole or not there."""
        header = {"version": np.array(VERSION), "stopped": np.array(self.stopped)}
        names, values = np.array(list(self.columns), str), np.array(list(self.columns.values()))
        with atomic_write(Path(path)) as file:
            np.savez(file, allow_pickle=False, **header, names=names, values=values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: It is no such file, or of another version.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as saved:
                arrays = {name: saved[name] for name in saved.files}
            version, stopped = int(arrays["version"]), str(arrays["stopped"])
            if version == VERSION:
                names = arrays["names"].tolist()
                return cls(dict(zip(names, arrays["values"], strict=True)), stopped)
        except FileNotFoundError:
            raise
        except UNREADABLE as error:
            raise ValueError(f"{path} is no history that was saved here: {error}") from error
        raise ValueError(f"{path} has version {version}; this package reads {VERSION}")

    def __str__(self) -> str:
        if not len(self):
            return f"no steps were taken{self._end}"
        shown = [name for name in SHOWN if name in self.columns]
        rows: list[list[str]] = [list(shown)]
        rows += [[f"{self[n][i]:.6g}" for n in shown] for i in self._sample()]
        return table(rows) + self._end

    @property
    def _end(self) -> str:
        return f"\nstopped: {self.stopped}" if self.stopped else ""

    def _sample(self) -> Sequence[int]:
        return np.unique(np.linspace(0, len(self) - 1, 10).round().astype(int)).tolist()

    def _of_sites(self, prefix: str) -> dict[str, Floats]:
        return {
            name.removeprefix(prefix): values
            for name, values in self.columns.items()
            if name.startswith(prefix)
        }
