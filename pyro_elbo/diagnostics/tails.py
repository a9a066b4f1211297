r"""The tails of importance weights: which can be used, and what to do about the others."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

from torch import Tensor

from ..evidence.estimate import UNRELIABLE
from ..tables import table

__all__ = ["USABLE", "KhatReport", "KhatShares", "WeightTails", "wrapped"]

GOOD, USABLE = 0.5, UNRELIABLE
MIN_TAIL = 5
SHOWN = 10
WIDTH = 100
REMEDY = (
    "the guide is too narrow or misplaced there: use a family with the posterior's shape "
    "(AutoMultivariateNormal, a flow), train on, or estimate the evidence by "
    "evidence.AnnealedImportance"
)
OF_JOINT = (
    "the joint k̂ is of the latents of all data at once: it rises with their number, and says "
    "nothing of any datum"
)


@dataclass(frozen=True)
class KhatShares:
    r"""Shares of all data: the first four add up to 1.

    Args:
        good: :math:`\hat k \le 0.5`: the weights have a finite variance.
        usable: :math:`0.5 < \hat k \le 0.7`: their mean can still be used.
        bad: :math:`\hat k > 0.7`: it cannot.
        missing: No :math:`\hat k`.
        above: :math:`\hat k` above the threshold for this number of samples.
    """

    good: float
    usable: float
    bad: float
    missing: float
    above: float


@dataclass(frozen=True, eq=False)
class WeightTails:
    r"""The tails of importance weights: 0-dim tensors for the joint, one dim a plate for data.

    Args:
        num_samples: How many weights each is of, 25 at least.
        khat: Pareto shapes; nan where there is no tail to fit.
        ess: Effective sample sizes; nan where every weight is 0.
        plates: The names of the plates, in the order of the dims.
        indices: The data's indices in the one plate; ``None`` for the joint or several plates.
        why: Why ``khat`` is nan where it is; empty where it is not.
    """

    num_samples: int
    khat: Tensor
    ess: Tensor
    plates: tuple[str, ...] = ()
    indices: Tensor | None = None
    why: str = ""

    @property
    def threshold(self) -> float:
        r"""What :math:`\hat k` these samples suffice for, :math:`\min(1 - 1/\log_{10} S, 0.7)`."""
        return min(1 - 1 / math.log10(self.num_samples), USABLE)

    @property
    def good(self) -> Tensor:
        r"""Where :math:`\hat k \le 0.5`."""
        return self.khat <= GOOD

    @property
    def usable(self) -> Tensor:
        r"""Where :math:`0.5 < \hat k \le 0.7`."""
        return (self.khat > GOOD) & (self.khat <= USABLE)

    @property
    def bad(self) -> Tensor:
        r"""Where :math:`\hat k > 0.7`."""
        return self.khat > USABLE

    @property
    def missing(self) -> Tensor:
        r"""Where there is no :math:`\hat k`."""
        return self.khat.isnan()

    @property
    def above(self) -> Tensor:
        r"""Where :math:`\hat k` is above the threshold for this number of samples."""
        return self.khat > self.threshold

    @property
    def reliable(self) -> Tensor:
        r"""Where the weights can be used.

        Their :math:`\hat k` is at most the threshold; or they have none because so many of the
        largest are equal that there is no tail, and not because hardly any is above 0.
        """
        return (self.khat <= self.threshold) | (self.missing & (self.ess >= MIN_TAIL))

    @property
    def unusable(self) -> Tensor:
        r"""Where :math:`\hat k` is above 0.7, or there is none though few weights are above 0."""
        return self.bad | (self.missing & ~self.reliable)

    @property
    def shares(self) -> KhatShares:
        """The shares of data at each threshold."""
        masks = (self.good, self.usable, self.bad, self.missing, self.above)
        return KhatShares(*(float(mask.double().mean()) for mask in masks))


@dataclass(frozen=True, eq=False)
class KhatReport:
    r"""The tails of a guide's importance weights; ``print`` shows a page with a verdict.

    Args:
        joint: Of the weights of all latents at once.
        per_datum: Of each datum's own weights; ``None`` where data share latents.
        why_no_datum: Why ``per_datum`` is ``None``.
        part: Which part of the data it is of; empty where it is all.
    """

    joint: WeightTails
    per_datum: WeightTails | None
    why_no_datum: str = ""
    part: str = ""

    @property
    def reliable(self) -> bool:
        """Whether the weights of every datum, or the joint where data share, can be used."""
        return bool((self.per_datum or self.joint).reliable.all())

    @property
    def verdict(self) -> str:
        """What it means, and what to do."""
        return "\n".join(self._of_joint() if self.per_datum is None else self._of(self.per_datum))

    def _of_joint(self) -> list[str]:
        found = "can be used" if self.reliable else f"cannot be used: {_remedy(self.joint)}"
        return [f"the joint weights {found}", f"no k̂ per datum: {self.why_no_datum}"]

    def _of(self, data: WeightTails) -> list[str]:
        bad = ~data.reliable
        found = [OF_JOINT] if not self.joint.reliable and bad.numel() > 1 else []
        if not bad.any():
            return ["the weights of every datum can be used", *found]
        many = f"{int(bad.sum()):,} of {bad.numel():,} data have weights that cannot be used"
        return [f"{many}{_names(data, bad)}: {_remedy(data)}", *found]

    def __str__(self) -> str:
        joint, data = self.joint, self.per_datum
        part = f", for {self.part}" if self.part else ""
        head = (
            f"weights p(x, z) / q(z) of {joint.num_samples:,} samples{part}: usable up to "
            f"k̂ = {joint.threshold:.2f}"
        )
        rows = [["weights", "Pareto k", "ESS"], _row("joint", joint.khat, joint.ess)]
        parts = [wrapped(head)]
        if data is not None:
            rows.append(_row("data, median", data.khat.nanmedian(), data.ess.median()))
            worst = data.khat.nan_to_num(nan=-math.inf).max()
            rows.append(_row("data, worst", worst, data.ess.min()))
        parts.append(table(rows, text=()))
        parts += [table(_share_rows(data), text=())] if data is not None else []
        missing = {"joint": joint.why, "data": data.why if data is not None else ""}
        lines = [f"no k̂, {what}: {why}" for what, why in missing.items() if why]
        lines += self.verdict.splitlines()
        parts.append("\n".join(map(wrapped, lines)))
        return "\n\n".join(parts)


def _remedy(tails: WeightTails) -> str:
    if (tails.reliable | tails.usable).all():
        return f"take num_samples={math.ceil(10 ** (1 / (1 - USABLE)))} or more"
    return REMEDY


def _names(tails: WeightTails, bad: Tensor) -> str:
    if tails.indices is None:
        return ""
    indices = tails.indices.to(bad.device)[bad].tolist()
    more = ", ..." if len(indices) > SHOWN else ""
    return f" ({', '.join(tails.plates)} {', '.join(map(str, indices[:SHOWN]))}{more})"


def _row(name: str, khat: Tensor, ess: Tensor) -> list[str]:
    return [name, f"{float(khat):.2f}" if khat.isfinite() else "-", f"{float(ess):,.1f}"]


def wrapped(text: str) -> str:
    """One line as several that fit a page."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def _share_rows(tails: WeightTails) -> list[list[str]]:
    names = {
        f"k ≤ {GOOD}": tails.good,
        f"{GOOD} < k ≤ {USABLE}": tails.usable,
        f"k > {USABLE}": tails.bad,
        "no k": tails.missing,
        f"k > {tails.threshold:.2f}, the threshold": tails.above,
    }
    rows = [
        [name, f"{int(mask.sum()):,}", f"{100 * float(mask.double().mean()):.1f} %"]
        for name, mask in names.items()
    ]
    return [["data with", "number", "share"], *rows]
