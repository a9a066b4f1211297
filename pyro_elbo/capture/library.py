"""Graphs that are compiled ahead of time, as files that a later process loads."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, fx

from .private import build_library, load_library

__all__ = ["folder_of", "library_path", "load_or_build"]

FORMAT = 2


def folder_of(ahead_of_time: bool | str | os.PathLike[str]) -> Path | None:
    """Where libraries are kept: in a folder that is named, or the user's cache; or nowhere."""
    if not isinstance(ahead_of_time, bool):
        return Path(ahead_of_time)
    if not ahead_of_time:
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pyro_elbo"


def library_path(graph: fx.GraphModule, inputs: Sequence[Tensor], folder: Path) -> Path:
    """Where the library of a graph is: its name is that of all that it depends on.

    Those are the operations, the constants, the shapes and dtypes of the inputs, the versions of
    torch and of Python, and the processor. A library of anything else has another name.
    """
    key = sha256()
    for part in _parts(graph, inputs):
        key.update(part.encode() if isinstance(part, str) else part)
        key.update(b"\0")
    return folder / f"{key.hexdigest()[:32]}.pt2"


def load_or_build(
    graph: fx.GraphModule, inputs: Sequence[Tensor], path: Path
) -> Callable[..., Sequence[Tensor]]:
    """The library, from its file where that is one, else compiled and kept."""
    if path.exists():
        try:
            return load_library(path)
        except Exception:  # a file that was cut off, or is something else: it is made anew
            path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as scratch:
        build_library(graph, inputs, Path(scratch) / path.name)
        os.replace(Path(scratch) / path.name, path)
    return load_library(path)


def _parts(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Iterator[str | bytes]:
    yield f"{FORMAT} {torch.__version__} {platform.python_version()} {_processor()}"
    yield graph.code
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            yield _described(getattr(graph, node.target))
            yield _bytes(getattr(graph, node.target))
    for tensor in inputs:
        yield _described(tensor)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{value.dtype} {tuple(value.shape)} {value.stride()} {value.device}"


def _bytes(value: Any) -> bytes:
    if not isinstance(value, Tensor):
        return b""
    flat = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return flat.numpy().tobytes()


def _processor() -> str:
    """What compiled code depends on: the machine, and what its processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.system()} {platform.machine()} {flags}"
