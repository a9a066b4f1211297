"""The state of every random number generator that training draws from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RNG", "loader_generators"]


@dataclass(frozen=True, eq=False)
class RNG:
    """States, of torch (every device in use), numpy, Python, and of a loader's own generators.

    Args:
        state: Tensors and plain containers, safe for ``torch.load(weights_only=True)``.
    """

    state: Mapping[str, Any]

    @classmethod
    def now(cls, generators: Sequence[torch.Generator] = ()) -> RNG:
        """The states as they are."""
        name, keys, *rest = np.random.get_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(
            {
                "torch": torch.get_rng_state(),
                "cuda": cuda,
                "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
                "python": random.getstate(),
                "generators": [generator.get_state() for generator in generators],
            }
        )

    def restore(self, generators: Sequence[torch.Generator] = ()) -> None:
        """Put the states back."""
        name, keys, *rest = self.state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        random.setstate(_tuples(self.state["python"]))
        torch.set_rng_state(self.state["torch"])
        if self.state["cuda"]:
            torch.cuda.set_rng_state_all(self.state["cuda"])
        for generator, state in zip(generators, self.state["generators"], strict=True):
            generator.set_state(state)


def loader_generators(loader: Any) -> list[torch.Generator]:
    """The generators of a DataLoader and its samplers, each once."""
    sampler, batch_sampler = (getattr(loader, n, None) for n in ("sampler", "batch_sampler"))
    holders = (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    unique = {id(one): one for one in found if isinstance(one, torch.Generator)}
    return list(unique.values())


def _tuples(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
