"""Interleaved rounds, and what their times say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median, quantiles
from typing import NamedTuple

__all__ = ["CHUNK", "Quartiles", "interleave", "quartiles", "ratios"]

CHUNK = 0.04
FEWEST_CALLS, MOST_CALLS = 2, 5_000
TRIES = 3
UNTIMED = 4

Timer = Callable[[int], float]
"""The seconds that so many calls take."""


class Quartiles(NamedTuple):
    """The quartiles of some numbers."""

    lower: float
    median: float
    upper: float


def calls_of(timer: Timer, chunk: float) -> int:
    """How many calls take about a chunk of seconds.

    By the quickest of some tries: a first call builds, and a compiled step is now and then looked
    at beside an eager one, which takes as long as a hundred others.
    """
    calls = 1
    timer(calls)
    while (seconds := min(timer(calls) for _ in range(TRIES))) < chunk / 4 and calls < MOST_CALLS:
        calls *= 4
    return max(FEWEST_CALLS, min(MOST_CALLS, round(calls * chunk / seconds)))


def warm(timer: Timer, calls: int) -> float:
    """The seconds of so many calls, after a quarter as many: others had the caches before."""
    if calls >= UNTIMED:
        timer(calls // UNTIMED)
    return timer(calls)


def interleave(
    timers: Mapping[str, Timer], num_rounds: int, chunk: float = CHUNK
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time each in turn, round by round, the order rotated by one from round to round.

    Args:
        timers: What to time.
        num_rounds: How many rounds.
        chunk: About how many seconds each has in a round, after a quarter of its calls untimed;
            a slow one has more, for two calls.

    Returns:
        The seconds of a call in each round, and what broke, each by name.
    """
    calls: dict[str, int] = {}
    broken: dict[str, str] = {}
    times: dict[str, list[float]] = {name: [] for name in timers}

    def attempt(name: str, run: Callable[[], float]) -> float | None:
        try:
            return run()
        except Exception as error:
            broken[name] = f"{type(error).__name__}: {error}"
            return None

    for name, timer in timers.items():
        found = attempt(name, partial(calls_of, timer, chunk))
        calls[name] = int(found or 0)
    names = list(timers)
    for i in range(num_rounds):
        turn = i % len(names)
        for name in [*names[turn:], *names[:turn]]:
            if name in broken:
                continue
            seconds = attempt(name, partial(warm, timers[name], calls[name]))
            if seconds is not None:
                times[name].append(seconds / calls[name])
    return {name: own for name, own in times.items() if name not in broken}, broken


def quartiles(values: Sequence[float]) -> Quartiles:
    """The quartiles; of one number, itself."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return Quartiles(lower, median(values), upper)


def ratios(times: Sequence[float], others: Sequence[float]) -> Quartiles:
    """The quartiles of the rounds' ratios."""
    return quartiles([a / b for a, b in zip(times, others, strict=True)])
