"""Steps of PyTorch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..data import PRODUCTS
from ..workloads import SIZED
from .stepper import Cell, Stepper

__all__ = ["compiled", "eager", "matrix_products", "whole"]

LEARNING_RATE, BETAS, EPSILON = 1e-3, (0.9, 0.999), 1e-8


def fused(cell: Cell, wrap: Callable[[Any], Any]) -> Stepper:
    """Loss and gradients, then PyTorch's fused Adam."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    workload = SIZED[cell.workload](*cell.sizes)
    parameters = [p.requires_grad_() for p in workload.by_hand.make_parameters()]
    adam = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    loss_of = wrap(workload.by_hand.loss)

    def call() -> float:
        adam.zero_grad()
        loss = loss_of(parameters, *workload.arguments)
        loss.backward()
        adam.step()
        return loss.item()

    return Stepper(call)


def eager(cell: Cell) -> Stepper:
    """Nothing compiled."""
    return fused(cell, lambda loss: loss)


def compiled(cell: Cell) -> Stepper:
    """The loss and its gradients compiled."""
    return fused(cell, lambda loss: torch.compile(loss, fullgraph=True))


def whole(cell: Cell) -> Stepper:
    """Loss, gradients and Adam compiled as one function."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    workload = SIZED[cell.workload](*cell.sizes)
    parameters = workload.by_hand.make_parameters()
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    state: list[Any] = [parameters, means, squares, torch.zeros(())]

    @torch.compile(fullgraph=True)
    def update(parameters: Any, means: Any, squares: Any, count: Tensor, *arguments: Any) -> Any:
        def loss_of(parameters: list[Tensor]) -> Tensor:
            return workload.by_hand.loss(parameters, *arguments)

        gradients, loss = torch.func.grad_and_value(loss_of)(parameters)
        count = count + 1
        means = [m.lerp(g, 1 - BETAS[0]) for m, g in zip(means, gradients, strict=True)]
        squares = [s.lerp(g * g, 1 - BETAS[1]) for s, g in zip(squares, gradients, strict=True)]
        rate, correction = LEARNING_RATE / (1 - BETAS[0] ** count), 1 - BETAS[1] ** count
        moved = [
            p - rate * m / ((s / correction).sqrt() + EPSILON)
            for p, m, s in zip(parameters, means, squares, strict=True)
        ]
        return [moved, means, squares, count], loss

    def call() -> float:
        with torch.no_grad():
            state[:], loss = update(*state, *workload.arguments)
        return loss.item()

    return Stepper(call)


def matrix_products(cell: Cell) -> Stepper:
    """Nothing but the products of the small VAE."""
    torch.set_num_threads(1)
    pairs = [(torch.randn(n, k), torch.randn(k, m)) for n, k, m in PRODUCTS]
    outputs = [torch.mm(a, b) for a, b in pairs]

    def call() -> None:
        for (a, b), output in zip(pairs, outputs, strict=True):
            torch.mm(a, b, out=output)

    return Stepper(call)
