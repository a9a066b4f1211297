"""Terms and plans as tables that a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .terms import ELBOTerms

__all__ = ["group_name", "table", "terms_table"]

_ROWS = {
    "elbo": "ELBO",
    "reconstruction": "reconstruction",
    "kl": "KL",
    "expected_log_joint": "expected log joint",
    "entropy": "entropy",
    "importance_bound": "importance-weighted bound",
    "weighted_kl": "weighted KL",
    "objective": "objective",
}
_TEXT_COLUMNS = ("site", "role", "plates", "why")


def table(rows: Sequence[Sequence[str]], text: Sequence[str] = _TEXT_COLUMNS) -> str:
    """Lay rows of cells out in columns, under a head: text to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 or rows[0][i] in text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def group_name(name: str, members: Sequence[str], shown: int = 3) -> str:
    """A site's name, and the other members of its group where it has some (not its auxiliary)."""
    others = [member for member in members if member not in (name, f"{name}_unconstrained")]
    more = [f"+{len(others) - shown}"] if len(others) > shown else []
    return f"{name} ({', '.join([*others[:shown], *more])})" if others else name


def terms_table(terms: ELBOTerms) -> str:
    """Totals, per datum where all observed sites share one plate, then a row for each site."""
    size = terms.num_data
    rows = [["nats", "total"]]
    rows[0] += ["std. error"] if terms.num_particles > 1 else []
    rows[0] += [f"per datum (of {size:,})"] if size else []
    names = [name for name in _ROWS if name != "importance_bound" or not terms.no_bound]
    rows += [_term_row(terms, name, size) for name in names]
    sites = [["site", "role", "plates", "beta", "log p", "KL", "KL is"]]
    sites += [_site_row(site) for site in terms.sites.values()]
    return f"{table(rows)}\n\n{table(sites)}"


def _term_row(terms: ELBOTerms, name: str, size: int) -> list[str]:
    label, value = _ROWS[name], float(getattr(terms, name)) + 0.0
    row = [f"{label} (beta = {_betas(terms)})" if name == "weighted_kl" else label]
    row += [f"{value:,.3f}"]
    if terms.num_particles > 1:
        error = terms.standard_error.get(name)
        row += ["-" if error is None else f"{float(error):,.3f}"]
    return row + ([f"{value / size:,.4f}"] if size else [])


def _site_row(site: Any) -> list[str]:
    log_p, kl = (
        float(sum(site.per_particle(part, ()).mean(0) for part in parts))
        for parts in (("log_likelihood", "log_prior"), ("kl",))
    )
    latent = site.beta is not None
    return [
        group_name(site.name, site.members),
        site.role,
        ", ".join(site.plates) or "-",
        f"{float(site.beta):g}" if latent else "-",
        f"{log_p:,.3f}",
        f"{kl:,.3f}" if latent else "-",
        site.how.get("kl", "-"),
    ]


def _betas(terms: ELBOTerms) -> str:
    betas = {float(site.beta) for site in terms.sites.values() if site.beta is not None}
    betas = betas or {float(terms.default_beta)}
    return f"{betas.pop():g}" if len(betas) == 1 else "by site"
