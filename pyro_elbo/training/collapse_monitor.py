"""The KL of a latent that falls to nothing, said while something can be done about it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import inf, isfinite
from typing import Any

import torch

from ..evidence.checks import check_count
from ..site_terms import SiteTerms
from ..terms import ELBOTerms
from .run import Run

__all__ = ["CollapseMonitor"]

RISE = 1.25


class CollapseMonitor:
    r"""Says so, once for each site, when its KL per datum has fallen to nothing.

    A site is collapsed where the mean KL of every ``every`` steps has been below the threshold for
    ``window`` steps, and is not on its way up: over the second half of the window it is at most a
    quarter more than over the first. A guide that begins at the prior, with a KL of 0 that then
    grows by at least that, is therefore not said to be collapsed; one whose KL stays flat at
    nothing for the whole window is, also where it would rise later.

    Steps at weight 0 are not counted, nor those at a weight above 1 that a schedule will lower: the
    KL says nothing about the end of training there.

    A datum is an entry of the outermost plate, of those one inside the other, that the site shares
    with all observed sites; a site without one (a global latent) is judged by its whole KL. Point
    masses have no KL.

    Args:
        threshold: In nats per datum.
        window: Steps.
        every: The KL is read at steps that are multiples of this.

    Attributes:
        collapsed: The sites that are collapsed, with the step at which that was said; a site whose
            KL rises above the threshold again is taken out.

    Raises:
        ValueError: The threshold is not positive and finite, ``every`` below 1, or the window
            shorter than twice that.

    Before the first step, a ``TypeError`` says that the loss has no terms.

    Warns:
        UserWarning: A site has collapsed.

    Example:
        >>> import warnings
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_elbo import TraceKL_ELBO, fit
        >>> from pyro_elbo.training import CollapseMonitor
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(0. * z, 1.), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(1.))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(slope * x, 1.))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceKL_ELBO())
        >>> monitor = CollapseMonitor(window=100, every=10)
        >>> with warnings.catch_warnings(record=True, action="always") as said:
        ...     _ = fit(svi, torch.tensor([1., -2.]), num_steps=300, callbacks=[monitor],
        ...             progress=False)
        >>> monitor.collapsed
        {'z': 140}
        >>> str(said[0].message).split(",")[0]
        "site 'z': its KL has collapsed"

    References:
        *Generating Sentences from a Continuous Space* (Bowman et al., 2016), arXiv 1511.06349.
        *Lagging Inference Networks and Posterior Collapse in Variational Autoencoders* (He et al.,
        2019), arXiv 1901.05534.
    """

    def __init__(self, threshold: float = 0.01, window: int = 500, every: int = 50) -> None:
        check_count("every", every, 1)
        check_count("window", window, 2 * every)
        if not 0 < threshold < inf:
            raise ValueError(f"threshold must be positive and finite, not {threshold!r}")
        self._threshold, self._every = threshold, every
        self._length = window // every
        self._clear()

    def start(self, run: Run) -> None:
        """Refuse a loss whose KL is not known."""
        if not hasattr(run.loss, "decompose"):
            raise TypeError(
                "the KL of each site is not known: the stepper's loss has no terms: "
                f"{run.loss!r}; use a loss of this package"
            )
        if run.step == 0:
            self._clear()

    def __call__(self, run: Run) -> None:
        """Add up; judge, where it is time."""
        terms = run.terms
        assert terms is not None
        for name, site in terms.sites.items():
            if _counts(site, run.is_annealing):
                kl = site.total("kl") / _num_data(terms, site)
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = total + kl, count + 1
        if run.step % self._every == 0:
            for name in self._read():
                self._judge(name, run)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "sums": {name: [total, count] for name, (total, count) in self._sums.items()},
            "means": {name: list(means) for name, means in self._means.items()},
            "collapsed": dict(self.collapsed),
            "told": sorted(self._told),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._clear()
        self._sums.update({name: tuple(parts) for name, parts in state["sums"].items()})
        self._means.update({name: list(means) for name, means in state["means"].items()})
        self.collapsed.update(state["collapsed"])
        self._told.update(state["told"])

    def _clear(self) -> None:
        self._sums: dict[str, tuple[Any, int]] = {}
        self._means: dict[str, list[float]] = {}
        self.collapsed: dict[str, int] = {}
        self._told: set[str] = set()

    def _read(self) -> list[str]:
        """Wait for the sums, and keep their means; the sites that have a new one."""
        if not self._sums:
            return []
        means = torch.stack([total / count for total, count in self._sums.values()]).tolist()
        new = {n: mean for n, mean in zip(self._sums, means, strict=True) if isfinite(mean)}
        for name, mean in new.items():
            self._means[name] = [*self._means.get(name, []), mean][-self._length :]
        self._sums.clear()
        return list(new)

    def _judge(self, name: str, run: Run) -> None:
        means = self._means[name]
        if not means[-1] < self._threshold:
            self.collapsed.pop(name, None)
        elif name not in self.collapsed and self._is_collapsed(means):
            self.collapsed[name] = run.step
            self._warn(name, run)

    def _is_collapsed(self, means: list[float]) -> bool:
        half = self._length // 2
        first, second = sum(means[:half]) / half, sum(means[-half:]) / half
        is_full = len(means) == self._length
        return is_full and max(means) < self._threshold and second <= RISE * first

    def _warn(self, name: str, run: Run) -> None:
        if name in self._told:
            return
        self._told.add(name)
        warnings.warn(
            f"site {name!r}: its KL has collapsed, to {self._means[name][-1]:.2g} nats per datum, "
            f"by step {run.step}, and stays there, so that it says next to nothing about the data. "
            "Warm the KL up (beta=schedules.Linear(0.0, 1.0, num_steps=...)), leave each site some "
            "nats for free (free bits), lower beta, or weaken the decoder; where the ELBO is no "
            "better then, the data do not need the site",
            UserWarning,
            stacklevel=2,
        )


def _counts(site: SiteTerms, is_annealing: bool) -> bool:
    """Whether a step tells about the end of training: the site's KL is there, and weighs in."""
    if site.beta is None or site.role == "map":
        return False
    beta = float(site.beta)
    return beta > 0 and not (is_annealing and beta > 1)


def _num_data(terms: ELBOTerms, site: SiteTerms) -> int:
    """The full size of the outermost plate that a site shares with all observed ones, or 1."""
    observed = [set(other.plates) for other in terms.sites.values() if other.role == "observed"]
    shared = set(site.plates).intersection(*observed) if observed else set()
    frames = [frame for frame in site.atoms[0].stack if frame.name in shared]
    sizes = [frame.size if frame.full_size is None else frame.full_size for frame in frames]
    return int(sizes[0]) if sizes else 1
