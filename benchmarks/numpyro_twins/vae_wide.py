"""A wider variational autoencoder of binary images."""

from __future__ import annotations

from typing import Any

from .vae import autoencoder

__all__ = ["program"]


def program() -> tuple[Any, Any]:
    """784 pixels, twice 512 hidden units, 20 latents."""
    return autoencoder([512, 512])
