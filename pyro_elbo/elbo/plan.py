"""How a loss computes each site, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..site_terms import SiteTerms
from ..tables import group_name, table
from ..terms import ELBOTerms

__all__ = ["Plan", "SitePlan", "plan_of"]


@dataclass(frozen=True)
class SitePlan:
    """How one site is computed.

    Args:
        name: The site.
        role: ``"observed"``, ``"latent"``, ``"joint"``, ``"factor"`` or ``"map"``.
        plates: Names of its plates, left to right.
        beta: Its weight; ``None`` at observed sites.
        kl: ``"exact"``, ``"sampled"`` or ``"enumerated"``; ``None`` at observed sites.
        entropy: The same for the entropy.
        gradient: How its gradient is had.
        why: The reason for the form, in words.
        members: The sites of the group.
    """

    name: str
    role: str
    plates: tuple[str, ...]
    beta: Any
    kl: str | None
    entropy: str | None
    gradient: str
    why: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The plans of all sites, observed ones first; ``print`` shows a table."""

    sites: tuple[SitePlan, ...]

    def __getitem__(self, name: str) -> SitePlan:
        """The plan of a site, or of the group that it is a member of.

        Raises:
            KeyError: No such site.
        """
        for site in self.sites:
            if name == site.name or name in site.members:
                return site
        raise KeyError(f"no site {name!r}; the sites are {[site.name for site in self.sites]}")

    def __str__(self) -> str:
        head = ["site", "role", "plates", "beta", "KL", "entropy", "gradient", "why"]
        return table([head, *(_row(site) for site in self.sites)], text=head)


def plan_of(terms: ELBOTerms) -> Plan:
    """The plan that an evaluation followed."""
    return Plan(tuple(_site_plan(site) for site in terms.sites.values()))


def _site_plan(site: SiteTerms) -> SitePlan:
    kl, entropy = site.how.get("kl"), site.how.get("log_guide")
    return SitePlan(
        site.name,
        site.role,
        site.plates,
        site.beta,
        kl,
        entropy,
        site.gradient,
        site.why,
        site.members,
    )


def _row(site: SitePlan) -> list[str]:
    beta = "-" if site.beta is None else f"{float(site.beta):g}"
    plates = ", ".join(site.plates) or "-"
    how = [site.kl or "-", site.entropy or "-"]
    return [
        group_name(site.name, site.members),
        site.role,
        plates,
        beta,
        *how,
        site.gradient,
        site.why,
    ]
