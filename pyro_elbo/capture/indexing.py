"""A graph of operations without the indexing that takes every entry in order.

That is how a value that is summed out picks its row of a parameter: by ``arange``. It is a view,
and its gradient another. Beside being faster a view is safer: where a scatter is read again at the
same places, torch's compiler can read what was there before (pytorch/pytorch#191571).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .aliases import Changes

__all__ = ["views_of_indexing"]

_ATEN = torch.ops.aten
_ZEROS = (_ATEN.new_zeros.default, _ATEN.zeros.default, _ATEN.zeros_like.default)
_SHAPES = (_ATEN.view.default, _ATEN.unsqueeze.default, _ATEN.expand.default)


def views_of_indexing(graph: fx.Graph) -> None:
    """Make views, in place, of all indexing that takes every entry of a dimension in order."""
    changes = Changes(graph)
    for node in list(graph.nodes):
        if node.target is _ATEN.index.Tensor:
            source = node.args[0]
        elif node.target is _ATEN.index_put.default and _adds_to_zeros(node):
            source = node.args[2]
        else:
            continue
        is_plain = node.meta["val"].is_contiguous() and not changes.touch(node)
        if is_plain and _takes_all(node.args[0], node.args[1], source, node):
            with graph.inserting_before(node):
                view = _view(graph, source, node.meta)
            node.replace_all_uses_with(view)
            graph.erase_node(node)


def _view(graph: fx.Graph, source: fx.Node, meta: Any) -> fx.Node:
    """A view that is in memory as the indexed tensor was, or a copy of it that is."""
    indexed, seen = meta["val"], source.meta["val"].view(meta["val"].shape)
    view = graph.call_function(_ATEN.view.default, (source, list(indexed.shape)))
    view.meta = {**meta, "val": seen}
    if seen.stride() == indexed.stride():
        return view
    order: dict[str, Any] = {"memory_format": torch.contiguous_format}
    copy = graph.call_function(_ATEN.clone.default, (view,), order)
    copy.meta = dict(meta)
    return copy


def _adds_to_zeros(node: fx.Node) -> bool:
    zeros: Any = node.args[0]
    return zeros.target in _ZEROS and len(zeros.users) == 1


def _takes_all(indexed: Any, indices: Any, source: Any, node: fx.Node) -> bool:
    """Whether one dimension is indexed, by all of its places in order, of a tensor of that type."""
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        return False
    dim, index = given[0]
    before, places = indexed.meta["val"].shape, index.meta["val"].shape
    taken = torch.Size([*before[:dim], *places, *before[dim + 1 :]])
    larger = node.meta["val"].shape if source is indexed else source.meta["val"].shape
    return (
        _counts_up(index) == before[dim] == places.numel()
        and larger == taken
        and source.meta["val"].dtype == node.meta["val"].dtype
    )


def _counts_up(index: fx.Node) -> int | None:
    """How far an index counts up from 0 by 1; ``None`` where it does something else."""
    source: Any = index
    while source.target in _SHAPES:
        if source.meta["val"].numel() != source.args[0].meta["val"].numel():
            return None
        source = source.args[0]
    value = source.meta.get("val")
    if source.target is not _ATEN.arange.default or not isinstance(value, Tensor):
        return None
    end = source.args[0]
    return end if isinstance(end, int) and value.dtype == torch.int64 else None
