"""What a loss cannot do, said with the site's name and the remedy; and what ends training."""

from __future__ import annotations

__all__ = ["NonFiniteError", "StopTraining", "UnsupportedSiteError"]


class UnsupportedSiteError(NotImplementedError):
    """A loss cannot give a right number at a site, so it gives none.

    Args:
        site: Name of the sample site; or, alone, the whole message, as Pyro gives it to what it
            raises anew.
        why: What about the site is not supported.
        remedy: What to change.

    Example:
        >>> print(UnsupportedSiteError("z", "it is not reparameterised", "use a Normal guide"))
        site 'z': it is not reparameterised; use a Normal guide
    """

    def __init__(self, site: str, why: str = "", remedy: str = "") -> None:
        super().__init__(f"site {site!r}: {why}; {remedy}" if why else site)
        self.site, self.why, self.remedy = site, why, remedy


class NonFiniteError(ArithmeticError):
    """A term or a gradient is nan or infinite; parameters are as they were before the step."""


class StopTraining(Exception):  # noqa: N818
    """Raised by a loss or a callback to end training; ``fit`` then returns its history.

    Args:
        reason: Why, in words.
    """
