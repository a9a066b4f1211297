"""Terms and plans as tables that a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .terms import ELBOTerms

__all__ = ["table", "terms_table"]

_ROWS = (
    ("ELBO", "elbo"),
    ("reconstruction", "reconstruction"),
    ("KL", "kl"),
    ("expected log joint", "expected_log_joint"),
    ("entropy", "entropy"),
    ("objective", "objective"),
)


def table(rows: Sequence[Sequence[str]], right: bool = True) -> str:
    """Lay rows of cells out in columns: the first to the left, the others to the right if asked."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i and right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def terms_table(terms: ELBOTerms) -> str:
    """Totals, per datum where all observed sites share one plate, then a row for each site."""
    size = _num_data(terms)
    head = ["nats", "total"] + ([f"per datum (of {size:,})"] if size else [])
    rows = [head]
    for label, name in _ROWS:
        value = float(getattr(terms, name))
        if name == "objective":
            label = f"objective (beta = {_betas(terms)})"
        rows.append([label, f"{value:,.3f}"] + ([f"{value / size:,.4f}"] if size else []))
    sites = [["site", "role", "plates", "beta", "log p", "KL", "KL is"]]
    sites += [_site_row(site) for site in terms.sites.values()]
    return f"{table(rows)}\n\n{table(sites)}"


def _site_row(site: Any) -> list[str]:
    log_p = float((site.log_likelihood + site.log_prior).sum())
    latent = site.beta is not None
    return [
        site.name,
        site.role,
        ", ".join(site.plates) or "-",
        f"{float(site.beta):g}" if latent else "-",
        f"{log_p:,.3f}",
        f"{float(site.kl.sum()):,.3f}" if latent else "-",
        site.how.get("kl", "-"),
    ]


def _betas(terms: ELBOTerms) -> str:
    betas = {float(site.beta) for site in terms.sites.values() if site.beta is not None}
    betas = betas or {float(terms.default_beta)}
    return f"{betas.pop():g}" if len(betas) == 1 else "by site"


def _num_data(terms: ELBOTerms) -> int:
    observed = [site for site in terms.sites.values() if site.role == "observed"]
    shared = [site.plates for site in observed]
    plates = set.intersection(*map(set, shared)) if shared else set()
    if len(plates) != 1:
        return 0
    frame = observed[0].frame(plates.pop())
    return int(frame.size if frame.full_size is None else frame.full_size)
