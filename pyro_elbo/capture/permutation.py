"""The first entries of a random permutation, which is what a minibatch takes of one.

``torch.randperm`` draws a number for each entry, and puts the entry in the place that the number
says. The first few are in theirs after as many numbers: compiled code draws these alone, passes
over the others by Mersenne Twister's recurrence, several at a time, and leaves the generator where
torch does. The entries are the same, at any seed.

Source:
    Matsumoto and Nishimura (1998), Mersenne Twister, ACM Transactions on Modeling and Computer
    Simulation 8(1).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from .private import compile_function

__all__ = ["FirstOfPermutation"]

SMALLEST, LARGEST = 2**11, 2**27
"""How many entries a permutation has of which compiled code draws the first, up to a half: of fewer
torch draws in less than 20 microseconds, of more in another way, and nearly all in less time."""

THREAD = "pyro_elbo-permutation"

_CHECKED, _CHECKED_FIRST, _CHECKS = 1301, 700, 3  # more numbers than the generator has ready

_TYPES = ("int64_t*", "int32_t*", "int32_t*", "int32_t*", "int64_t", "int64_t")

_SOURCE = r"""
#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <utility>

constexpr int64_t SIZE = 624, AHEAD = 397;

// Torch's generator: a seed; how many numbers are left, and whether it has a seed; which word is
// next; the words.
struct Generator {
    int64_t* state;
    uint32_t words[SIZE];
    int64_t left, next;

    explicit Generator(int64_t* given) : state(given) {
        left = state[1] & 0xffffffffLL;
        next = state[2];
        for (int64_t i = 0; i < SIZE; i++) words[i] = static_cast<uint32_t>(state[3 + i]);
    }

    void keep() const {
        state[1] = (state[1] & ~0xffffffffLL) | left;
        state[2] = next;
        for (int64_t i = 0; i < SIZE; i++) state[3 + i] = words[i];
    }

    static uint32_t twisted(uint32_t one, uint32_t other) {
        const uint32_t mixed = (one & 0x80000000u) | (other & 0x7fffffffu);
        return (mixed >> 1) ^ (-(other & 1u) & 0x9908b0dfu);
    }

    __attribute__((optimize("tree-vectorize"))) void renew() {
        for (int64_t i = 0; i < SIZE - AHEAD; i++)
            words[i] = words[i + AHEAD] ^ twisted(words[i], words[i + 1]);
        for (int64_t i = SIZE - AHEAD; i < SIZE - 1; i++)
            words[i] = words[i + AHEAD - SIZE] ^ twisted(words[i], words[i + 1]);
        words[SIZE - 1] = words[AHEAD - 1] ^ twisted(words[SIZE - 1], words[0]);
        left = SIZE;
        next = 0;
    }

    uint32_t draw() {
        if (--left == 0) renew();
        uint32_t word = words[next++];
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c5680u;
        word ^= (word << 15) & 0xefc60000u;
        return word ^ (word >> 18);
    }

    void skip(int64_t count) {
        while (count >= left) {
            count -= left;
            renew();
            next = 1;
        }
        left -= count;
        next += count;
    }
};

// order: 0, 1, ..., size - 1, as it is again in the end.
extern "C" void kernel(int64_t* state, int32_t* order, int32_t* places, int32_t* first,
                       int64_t size, int64_t count) {
    Generator generator(state);
    for (int64_t i = 0; i < count; i++) {
        places[i] = i + generator.draw() % (size - i);
        std::swap(order[i], order[places[i]]);
    }
    for (int64_t i = 0; i < count; i++) first[i] = order[i];
    for (int64_t i = 0; i < count; i++) order[places[i]] = places[i];
    for (int64_t i = 0; i < count; i++) order[i] = i;
    generator.skip(size - 1 - count);
    generator.keep();
}
"""

_Draw = Callable[[Tensor, torch.Generator], Any]


class FirstOfPermutation:
    """Fills a tensor with the first entries of a permutation, drawn to its end.

    Args:
        whole: Memory for all of it, of type int32. A tensor that begins where it does is filled by
            drawing in it.
        count: How many entries are taken.
    """

    def __init__(self, whole: Tensor, count: int) -> None:
        self._whole, self._place, self._count = whole, whole.data_ptr(), count
        self._draw: _Draw = self._drawn_by_torch

    def __call__(self, first: Tensor) -> None:
        """Fill a tensor."""
        self._draw(first, torch.default_generator)

    def compile(self) -> None:
        """Draw by compiled code once there is some, compiled in a thread: the same numbers."""
        if SMALLEST <= len(self._whole) <= LARGEST and 2 * self._count <= len(self._whole):
            Thread(target=self._compile, name=THREAD).start()

    def _compile(self) -> None:
        with suppress(Exception):  # then torch draws on
            if _is_right():
                self._draw = _drawn_by(len(self._whole), self._count)

    def _drawn_by_torch(self, first: Tensor, generator: torch.Generator) -> None:
        torch.randperm(len(self._whole), generator=generator, out=self._whole)
        if first.data_ptr() != self._place:
            first.copy_(self._whole[: self._count])


def _drawn_by(size: int, count: int) -> _Draw:
    kernel = _kernel()
    order = torch.arange(size, dtype=torch.int32)
    places = torch.empty(count, dtype=torch.int32)

    def draw(first: Tensor, generator: torch.Generator) -> None:
        state = generator.get_state()
        kernel(state, order, places, first, size, count)
        generator.set_state(state)

    return draw


@cache
def _kernel() -> Callable[..., Any]:
    return compile_function(_SOURCE, _TYPES)


@cache
def _is_right() -> bool:
    """Whether compiled code draws what this torch does, and leaves the generator where it does."""
    own, torchs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    draw, first = _drawn_by(_CHECKED, _CHECKED_FIRST), torch.empty(_CHECKED_FIRST).int()
    for _ in range(_CHECKS):
        draw(first, own)
        whole = torch.randperm(_CHECKED, generator=torchs, dtype=torch.int32)
        if not torch.equal(first, whole[:_CHECKED_FIRST]):
            return False
    return torch.equal(own.get_state(), torchs.get_state())
