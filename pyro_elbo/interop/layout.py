"""Tensors of a trace as ``(draws, *plates, *event)``, each dim with its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UnsupportedSiteError
from ..site_terms import PARTICLES

__all__ = ["Labelled", "computed", "event_dims", "frames_of", "laid_out"]


class Labelled(NamedTuple):
    """A tensor of shape ``(draws, *dims)``, with the names of its dims after the draws."""

    value: Tensor
    dims: tuple[str, ...]


def frames_of(site: Any) -> dict[str, Any]:
    """The vectorised plates of a site by name, left to right, that of the draws included."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    return {frame.name: frame for frame in sorted(frames, key=lambda frame: frame.dim)}


def laid_out(
    name: str, value: Any, event_dim: int, frames: Mapping[str, Any], count: int
) -> Labelled:
    """A value of a site, broadcast to its plates.

    Args:
        name: The site.
        value: Its value, log-density or mask; plates and event broadcast.
        event_dim: How many dims on the right are those of one event.
        frames: Its plates.
        count: How many draws there are.

    Raises:
        UnsupportedSiteError: A dim is neither a plate's nor the event's.
    """
    value = torch.as_tensor(value).detach()
    dims = [frame.dim for frame in frames.values()]
    depth = max([value.dim() - event_dim, 0, *(-dim for dim in dims)])
    value = value.reshape((1,) * (depth + event_dim - value.dim()) + value.shape)
    shape = list(value.shape)
    for frame in frames.values():
        shape[frame.dim - event_dim] = max(frame.size, shape[frame.dim - event_dim])
    value = value.expand(shape)
    event = shape[depth:]
    others = [shape[dim - event_dim] for dim in range(-depth, 0) if dim not in dims]
    if any(size != 1 for size in others):
        raise UnsupportedSiteError(
            name,
            f"its dims {others} are in no plate, so its entries have no names",
            "put it into a plate, or declare the dims as those of one event with .to_event()",
        )
    value = value.reshape([shape[dim - event_dim] for dim in dims] + event)
    if PARTICLES not in frames:
        value = value.expand(count, *value.shape)
    plates = tuple(plate for plate in frames if plate != PARTICLES)
    return Labelled(value, (*plates, *event_dims(name, len(event))))


def event_dims(name: str, event_dim: int) -> tuple[str, ...]:
    """Names of the dims of a site's event, as ArviZ numbers them."""
    return tuple(f"{name}_dim_{at}" for at in range(event_dim))


def computed(site: Any, value: Any, count: int) -> Labelled:
    """All draws of what is computed from the latents, laid out as in one draw alone.

    Args:
        site: The site (``pyro.deterministic``) where the model runs at one draw alone.
        value: Its value at all draws.
        count: How many draws there are.

    Raises:
        ValueError: The value does not hold one of that shape for each draw.
    """
    value, shape = torch.as_tensor(value).detach(), torch.as_tensor(site["value"]).shape
    if value.numel() == count * shape.numel():
        value = value.reshape(count, *shape)
    elif value.numel() == shape.numel():
        value = value.reshape(shape).expand(count, *shape)
    else:
        raise ValueError(
            f"site {site['name']!r} has shape {tuple(shape)} at one draw and {tuple(value.shape)} "
            f"at {count}: the model does not run at many draws at once; count dims from the right, "
            "or pass vectorize_particles=False"
        )
    frames = [frame for frame in frames_of(site).values() if frame.name != PARTICLES]
    event_dim = _event_dim(site, shape, frames)
    batch = shape[: len(shape) - event_dim]
    kept = {frame.dim: frame.name for frame in frames if -frame.dim <= len(batch)}
    plates = [dim for dim in range(-len(batch), 0) if dim in kept]
    value = value.reshape(count, *(batch[dim] for dim in plates), *shape[len(batch) :])
    names = (*(kept[dim] for dim in plates), *event_dims(site["name"], event_dim))
    return Labelled(value, names)


def _event_dim(site: Any, shape: Sequence[int], frames: Sequence[Any]) -> int:
    """How many dims are the event's; Pyro says all where the site does not say."""
    given = int(site["fn"].event_dim)
    candidates = range(len(shape)) if given >= len(shape) and frames else [given]
    for event_dim in candidates:
        batch = shape[: len(shape) - event_dim]
        sizes = {frame.dim: frame.size for frame in frames}
        if all(batch[dim] == sizes.get(dim, 1) for dim in range(-len(batch), 0)):
            return event_dim
    return len(shape)
