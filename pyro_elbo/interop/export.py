"""A program's draws as ArviZ takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor

from .arrays import Variable, inference_data, unmasked
from .draws import Draws, Sampler
from .groups import groups_of
from .layout import Labelled

__all__ = ["to_inference_data"]

OF_DATA = ("log_likelihood", "posterior_predictive", "prior_predictive", "observed_data")


def to_inference_data(
    model: Any,
    guide: Any,
    *args: Any,
    num_samples: int = 1000,
    vectorize_particles: bool = True,
    **kwargs: Any,
) -> Any:
    r"""A program's draws, labelled, for ``az.summary``, ``az.loo``, ``az.compare`` and the plots.

    .. math::
        z_s \sim q(z), \quad x^\mathrm{rep}_s \sim p(x \mid z_s), \quad
        \log w_s = \log p(x, z_s) - \log q(z_s)

    ====================  ==========================================================================
    posterior             the guide's draws of the model's latents, and ``pyro.deterministic`` sites
                          at them; auxiliary sites of the guide are left out
    posterior_predictive  observed sites drawn anew at them
    log_likelihood        each datum's log-density at them, without any scale
    prior                 as many draws of the latents from the model
    prior_predictive      the data drawn with them
    observed_data         the data
    sample_stats          for each draw ``log_weight`` without any scale, and as the loss counts
                          them, with the scales of plates and of the user, ``elbo``,
                          ``reconstruction``, ``kl``, ``log_prior`` and ``log_guide``
    ====================  ==========================================================================

    Plates are dims, their entries the data's indices; a subsampled plate has one minibatch for all
    draws. Dims of events are called ``x_dim_0``. Entries that a mask hides are left out of the data
    groups: the site then has one dim ``x_entry``, with coordinates ``x_<plate>``. Factors have no
    data and are in no group but in ``sample_stats``; what was left out is said in the groups'
    ``attrs``. Latents that the model enumerates are drawn given all others and the data, and the
    likelihood is the one given them; ``log_weight`` has them summed out. Modules run in the mode
    that they are in: ``.eval()`` them first.

    Args:
        model: The model.
        guide: The guide; sites that it enumerates are sampled.
        *args: What both take.
        num_samples: Draws, in one chain.
        vectorize_particles: Whether all draws run at once, in a plate on the left; ``False`` for
            models that cannot (they index by ``loc[z]``, or branch on samples).
        **kwargs: What both take.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (ArviZ 1.x); a group
        without variables is left out.

    Raises:
        TypeError: ``num_samples`` is no integer.
        ValueError: It is below 1; a site has the name of a dim (``"chain"``, ``"draw"``, a plate);
            or the model does not run at many draws at once.
        UnsupportedSiteError: What every loss of this package refuses.

    Law:
        The mean of ``sample_stats["elbo"]`` is the ELBO; without scales ``log_weight`` equals it,
        draw by draw.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import to_inference_data
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5 ** 0.5))
        >>> data = to_inference_data(model, guide, torch.tensor([0., 1.]), num_samples=100)
        >>> dict(data.posterior["z"].sizes)
        {'chain': 1, 'draw': 100, 'data': 2}

    References:
        *ArviZ a unified library for exploratory analysis of Bayesian models in Python* (Kumar,
        Carroll, Hartikainen & Martin, 2019), Journal of Open Source Software.
    """
    _check_count(num_samples)
    sampler = Sampler(model, guide, args, kwargs, num_samples if vectorize_particles else 1)
    with torch.no_grad():
        first = _first_of(sampler)
        others = range(0 if vectorize_particles else num_samples - 1)
        groups = _joined([groups_of(first), *(groups_of(sampler.draw()) for _ in others)])
    masks = groups.pop("masks")
    coords = {plate: _array(at) for plate, at in sampler.indices.items()}
    for group in OF_DATA:
        groups[group] = unmasked(groups[group], masks, coords)
    return inference_data(
        {group: found for group, found in groups.items() if found},
        coords,
        dict.fromkeys(groups, _remarks(first, masks)),
    )


def _first_of(sampler: Sampler) -> Draws:
    try:
        return sampler.draw()
    except Exception as error:
        if sampler.count > 1:
            error.add_note(
                f"all {sampler.count} draws ran at once; vectorize_particles=False runs a model "
                "that cannot one draw at a time"
            )
        raise


def _check_count(num_samples: Any) -> None:
    if not isinstance(num_samples, Integral) or isinstance(num_samples, bool):
        raise TypeError(f"num_samples must be an integer, not {num_samples!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")


def _joined(sets: Sequence[Mapping[str, Mapping[str, Labelled]]]) -> dict[str, dict[str, Variable]]:
    """One set of groups from several, draws after draws."""
    groups: dict[str, dict[str, Variable]] = {}
    for group, first in sets[0].items():
        for name in {name for each in sets for name in each[group]}:
            _check_joint(name, [each[group].get(name) for each in sets], group == "observed_data")
        groups[group] = {}
        for name, (value, dims) in first.items():
            if group == "observed_data":
                value = value[0]
            elif len(sets) > 1:
                value = torch.cat([each[group][name].value for each in sets])
            groups[group][name] = Variable(_array(value), dims)
    return groups


def _check_joint(name: str, found: Sequence[Labelled | None], is_data: bool) -> None:
    values = [each.value for each in found if each is not None]
    shapes = {value.shape for value in values}
    if len(values) < len(found) or len(shapes) > 1:
        raise ValueError(
            f"site {name!r} is in {len(values)} of {len(found)} draws, with the shapes "
            f"{sorted(tuple(shape) for shape in shapes)}; all draws need the same sites"
        )
    first = values[0]
    if is_data and any(((v != first) & ~(v.isnan() & first.isnan())).any() for v in values[1:]):
        raise ValueError(
            f"site {name!r} has other data from draw to draw; give the model one minibatch, or let "
            "pyro.plate(..., subsample_size=) draw it"
        )


def _array(value: Tensor) -> NDArray[Any]:
    value = value.detach().cpu()
    if value.dtype in (torch.bfloat16, torch.float16):
        value = value.float()
    return value.clone(memory_format=torch.contiguous_format).numpy()


def _remarks(draws: Draws, masks: Mapping[str, Variable]) -> dict[str, str]:
    """What the groups cannot show themselves, and who made them."""
    masked = [name for name, mask in masks.items() if not mask.values.all()]
    runs = {"posterior_predictive": draws.predictive, "prior": draws.prior}
    notes = {
        "log_likelihood has no entry for the factors": draws.factors,
        "log_likelihood is given draws of the enumerated latents": draws.enumerated,
        "masked entries are left out of": masked,
        "some distribution cannot be sampled, so there is no": [
            name for name, run in runs.items() if run is None
        ],
    }
    return {
        "creation_library": "pyro_elbo",
        "inference_library": "pyro",
        "inference_library_version": str(pyro.__version__),
        "notes": "; ".join(f"{what} {', '.join(names)}" for what, names in notes.items() if names),
    }
