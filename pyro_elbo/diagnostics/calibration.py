"""Whether a guide is calibrated on data that the model itself simulates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..evidence.simulation import Arguments, Values
from ..tables import table
from .simulated_ranks import Refit, simulated_ranks

__all__ = ["Calibration", "sbc", "vsbc"]

LEVEL = 0.01
SHOWN = 10


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""Where the truth lies among the guide's samples, over simulated data sets.

    Args:
        method: ``"VSBC"`` or ``"SBC"``.
        names: Names of the scalar latents, such as ``"z[0]"``.
        probabilities: :math:`\Pr_q(z < z_\mathrm{true})`, ties counted by chance, shape
            ``[simulations, scalars]``.
        p_values: Of the test of each scalar: that the probabilities are symmetric about 1/2
            (VSBC), or uniform (SBC).
        level: What the least of them is held to, over all scalars together (Bonferroni).
    """

    method: str
    names: tuple[str, ...]
    probabilities: Tensor
    p_values: Tensor
    level: float = LEVEL

    @property
    def flagged(self) -> Tensor:
        """Which scalars fail, shape ``[scalars]``."""
        return self.p_values < self.level / len(self.names)

    @property
    def passes(self) -> bool:
        """Whether none does."""
        return not bool(self.flagged.any())

    def finding(self, at: int) -> str:
        """What is wrong with a scalar, in words."""
        if not self.flagged[at]:
            return "ok"
        values = self.probabilities[:, at]
        shift = float(values.mean() - 0.5) / float(values.std() / len(values) ** 0.5)
        words = []
        if abs(shift) > 2:
            words.append("too low" if shift > 0 else "too high")
        if self.method == "SBC":
            spread = float((values - values.mean()).square().mean())
            words.append("too narrow" if spread > 1 / 12 else "too wide")
        return ", ".join(words) or "asymmetric"

    def __str__(self) -> str:
        order = self.p_values.argsort()[:SHOWN].tolist()
        rows = [["latent", "mean Pr(z < truth)", "p-value", "the guide is"]]
        for at in order:
            mean = float(self.probabilities[:, at].mean())
            rows.append(
                [self.names[at], f"{mean:.3f}", f"{self.p_values[at]:.2g}", self.finding(at)]
            )
        more = len(self.names) - len(order)
        tail = [f"and {more} more"] if more else []
        head = f"{self.method} on {len(self.probabilities)} simulated data sets"
        verdict = "nothing flagged" if self.passes else f"{int(self.flagged.sum())} flagged"
        line = f"{verdict} at {self.level:g} over {len(self.names)} latents together"
        return "\n".join([head, table(rows, text=("the guide is",)), *tail, line])


def vsbc(
    model: Any,
    guide: Any,
    *args: Any,
    refit: Refit | None = None,
    arguments: Callable[[Values], Arguments] | None = None,
    num_simulations: int = 100,
    num_samples: int = 200,
    progress: bool = True,
    **kwargs: Any,
) -> Calibration:
    r"""Variational simulation-based calibration: whether the guide's values are too low or high.

    .. math::
        z^* \sim p(z),\ x^* \sim p(x \mid z^*),\quad p = \Pr_{q(z \mid x^*)}(z < z^*)

    Were the guide the posterior, p would be uniform. VSBC tests less, the symmetry of p about 1/2,
    which holds where the guide's centre is right on average, whatever its spread: a guide that is
    too narrow on both sides alike passes, and :func:`sbc` flags it. Scalars that a mask hides, such
    as the observed ones of ``obs_mask``, are left out.

    Args:
        model: The model.
        guide: The guide.
        *args: What both take.
        refit: From model, guide and arguments, all at simulated data, to the guide that is fitted
            to them; ``None`` for amortised guides, which see the data among their arguments.
            Parameters, and Pyro's store, are put back after each.
        arguments: From simulated data, by observed site, to the arguments at them; by default an
            argument that equals an observed value is replaced.
        num_simulations: Simulated data sets.
        num_samples: Samples of the guide for each.
        progress: Whether work of over a second shows a bar.
        **kwargs: What both take.

    Raises:
        ValueError: Without ``refit``, no argument holds the data; a plate is subsampled; or masks
            hide every latent.
        UnsupportedSiteError: The model has a factor.

    Law:
        With the posterior as guide the flags are false, at the stated level.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import diagnostics
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0., 1.))
        ...     pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def shifted(x):
        ...     pyro.sample("z", dist.Normal(x / 2 + 0.8, 0.7))
        >>> print(diagnostics.vsbc(model, shifted, torch.tensor(0.)).finding(0))
        too high

    References:
        *Yes, but Did It Work?: Evaluating Variational Inference* (Yao, Vehtari, Simpson & Gelman,
        2018), arXiv 1802.02538.
    """
    names, values = simulated_ranks(
        model, guide, args, kwargs, refit, arguments, num_simulations, num_samples, progress
    )
    tests = [symmetry_p_value(row) for row in values.T]
    return Calibration("VSBC", names, values, torch.tensor(tests))


def sbc(
    model: Any,
    guide: Any,
    *args: Any,
    refit: Refit | None = None,
    arguments: Callable[[Values], Arguments] | None = None,
    num_simulations: int = 100,
    num_samples: int = 200,
    progress: bool = True,
    **kwargs: Any,
) -> Calibration:
    r"""Simulation-based calibration of a guide: whether its intervals hold what they say.

    The rank of the truth among the guide's samples is uniform where the guide is the posterior.
    More ranks at both ends say that the guide is too narrow, fewer that it is too wide, more at one
    end that it is shifted. Scalars that a mask hides are left out, as in :func:`vsbc`.

    Args:
        model: The model.
        guide: The guide.
        *args: What both take.
        refit: As in :func:`vsbc`.
        arguments: As in :func:`vsbc`.
        num_simulations: Simulated data sets.
        num_samples: Samples of the guide for each.
        progress: Whether work of over a second shows a bar.
        **kwargs: What both take.

    Raises:
        ValueError: As :func:`vsbc`.
        UnsupportedSiteError: As :func:`vsbc`.

    Law:
        With the posterior as guide the flags are false, at the stated level.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import diagnostics
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0., 1.))
        ...     pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def narrow(x):
        ...     pyro.sample("z", dist.Normal(x / 2, 0.2))
        >>> print(diagnostics.sbc(model, narrow, torch.tensor(0.)).finding(0))
        too narrow

    References:
        *Validating Bayesian Inference Algorithms with Simulation-Based Calibration* (Talts et al.,
        2018), arXiv 1804.06788.
    """
    names, values = simulated_ranks(
        model, guide, args, kwargs, refit, arguments, num_simulations, num_samples, progress
    )
    tests = [stats.kstest(row, "uniform").pvalue for row in values.T.numpy()]
    return Calibration("SBC", names, values, torch.tensor(tests))


def symmetry_p_value(probabilities: Tensor) -> float:
    r"""The chance that as many numbers, symmetric about 1/2, are as lopsided as these.

    .. math:: D = \sup_t |F_n(t) + F_n(1 - t) - 1|

    In the order of their distances from 1/2 the signs are a simple random walk, whose largest
    excursion is :math:`n D`; its distribution is exact.

    Args:
        probabilities: Shape [n].

    References:
        *A Symmetry Test* (Butler, 1969), The Annals of Mathematical Statistics 40(6).
    """
    centred = probabilities - 0.5
    signs = centred[centred.abs().argsort(descending=True)].sign()
    reached = int(signs.cumsum(0).abs().max())
    inside = np.zeros(2 * reached + 1)
    inside[reached] = 1.0
    for _ in range(len(signs)):
        inside[1:-1] = (inside[:-2] + inside[2:]) / 2
        inside[[0, -1]] = 0.0
    return float(1.0 - inside.sum())
