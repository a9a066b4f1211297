"""What each goal asks, and whether the measurements meet it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .harness import Quartiles
from .results import BREAKS, Results, Value
from .variants import LABELS
from .workloads import ENUMERATED, SMALL, VAES, WORKLOADS

__all__ = ["GOALS", "Goal", "Row"]


LABELS_OF_CAPTURE = {
    "compiled_float64": "compiled, float64",
    "compiled_float32": "compiled, float32",
    "replayed_float64": "not compiled, float64",
    "replayed_float32": "not compiled, float32",
}


class Row(NamedTuple):
    """A line of a goal's table.

    Args:
        what: What was measured.
        value: The measurement.
        must: The most that it must be.
        aim: The most that it should be.
    """

    what: str
    value: Value
    must: float | None = None
    aim: float | None = None

    def holds(self, limit: float | None) -> bool | None:
        """Whether a limit holds, by the lower quartile of a ratio; ``None`` where none can say."""
        if limit is None or self.value is None:
            return None
        if isinstance(self.value, str):
            return False
        value = self.value.lower if isinstance(self.value, Quartiles) else self.value
        return value <= limit


class Goal(NamedTuple):
    """A goal.

    Args:
        name: Its number.
        title: What it is about.
        rows: Makes the lines of its table.
    """

    name: str
    title: str
    rows: Callable[[Results], Iterator[Row]]


def kind(
    workload: str, small: float | None, vae: float | None, other: float | None
) -> float | None:
    """The limit of a workload's kind."""
    return small if workload in SMALL else vae if workload in VAES else other


def eager(results: Results) -> Iterator[Row]:
    """Of both views."""
    for variant in ("kl", "gap"):
        for name in WORKLOADS:
            must, aim = kind(name, 0.90, 1.0, None), kind(name, 0.75, 0.92, None)
            what = f"{name}: {LABELS[variant]}"
            yield Row(what, results.ratio(name, variant, "trace"), must, aim)


def captured(results: Results) -> Iterator[Row]:
    """Against Pyro; of the VAEs it is the small one that has a limit."""
    for name in WORKLOADS:
        vae = 0.65 if name == "vae" else None
        must, aim = kind(name, 0.05, vae, None), kind(name, 0.015, None, None)
        yield Row(name, results.ratio(name, "compiled", "trace"), must, aim)


def beside_numpyro(results: Results) -> Iterator[Row]:
    """One step at a time, several, and the matrix products of both libraries."""
    for name in WORKLOADS:
        must, aim = kind(name, 1.0, 1.25, 1.0), kind(name, 0.5, 1.0, None)
        yield Row(name, results.ratio(name, "compiled", "numpyro"), must, aim)
    for name in WORKLOADS:
        value = results.ratio(name, "compiled_10", "numpyro_scan")
        if value is not None:
            yield Row(f"{name}: 10 steps a call / scan of 50", value, None, 1.0)
    products = results.ratio("vae", "products", "numpyro_products")
    yield Row("vae: the matrix products alone, PyTorch / JAX", products)


def beside_pytorch(results: Results) -> Iterator[Row]:
    """With fused Adam beside the compiled loss; and, without a limit, compiled with it."""
    for name in WORKLOADS:
        value = results.ratio(name, "compiled", "by_hand_compiled")
        aim = kind(name, 0.2, None, None)
        yield Row(f"{name} / {LABELS['by_hand_compiled']}", value, 1.0, aim)
    for name in WORKLOADS:
        value = results.ratio(name, "compiled", "by_hand_whole")
        yield Row(f"{name} / {LABELS['by_hand_whole']}", value)


def beside_products(results: Results) -> Iterator[Row]:
    """The small VAE."""
    yield Row("vae", results.ratio("vae", "compiled", "products"), None, 1.4)


def enumerated(results: Results) -> Iterator[Row]:
    """Every enumerated workload; the goal is the mixture's."""
    for name in ENUMERATED:
        is_goal = name == "gaussian_mixture"
        value = results.ratio(name, "compiled", "trace")
        yield Row(name, value, 0.05 if is_goal else None, 0.03 if is_goal else None)


def recording(results: Results) -> Iterator[Row]:
    """Eager and compiled."""
    for variant in ("kl", "compiled"):
        for name in (*SMALL, "vae"):
            value = results.ratio(f"recording_{name}", variant, f"{variant}_bare")
            yield Row(f"{name}: {LABELS[variant]}", value, 1.10, 1.03)


def particles(results: Results) -> Iterator[Row]:
    """Eager; and compiled, where next to nothing is left that particles share."""
    yield Row(LABELS["kl"], results.growth("kl", 1_000, 1), 1.7)
    yield Row(LABELS["compiled"], results.growth("compiled", 1_000, 1), None, 1.3)


def first_steps(results: Results) -> Iterator[Row]:
    """Seconds, imports left out, with nothing in the compiler's cache.

    Beside them what ``torch.compile`` takes for the same step, written by hand; and both in a
    later process, which has what torch kept of the first.
    """
    for name, sites, must in (("three_level", 10, 10.0), ("scalar_sites", 100, 30.0)):
        what = f"{name} ({sites} sites)"
        yield Row(what, results.read(name, "compiled", "first_seconds"), must, 5.0)
        again = results.read(name, "compiled", "again_seconds")
        yield Row(f"{what}, in a later process", again, None, 5.0)
    what = f"three_level, {LABELS['by_hand_whole']}"
    yield Row(what, results.read("three_level", "by_hand_whole", "first_seconds"))
    again = results.read("three_level", "by_hand_whole", "again_seconds")
    yield Row(f"{what}, in a later process", again)


def agreement(results: Results) -> Iterator[Row]:
    """Compiled, and run operation by operation.

    In float32 Adam makes a step of what is rounding alone, where a gradient is 0.
    """
    for how in ("compiled_float64", "replayed_float64", "replayed_float32", "compiled_float32"):
        must = None if how == "compiled_float32" else 1e-5
        aim = 0.0 if how.startswith("replayed") else None
        for name in WORKLOADS:
            value = results.found(f"agreement_{name}", how)
            yield Row(f"{name}, {LABELS_OF_CAPTURE[how]}", value, must, aim)


def fallback(results: Results) -> Iterator[Row]:
    """How often it says so; a case whose numbers differ breaks."""
    for case in ("no compiler", "no capture"):
        found = results.found("fallback", case)
        if isinstance(found, dict):
            said, same = len(found["warnings"]), found["same"]
            found = float(said) if same and said else BREAKS
        yield Row(f"{case}: warnings said, numbers the same", found, 1.0)


GOALS = (
    Goal("P1", "Eager with all terms / Pyro's loss, the same Adam", eager),
    Goal("P2", "CompiledSVI with all terms / Pyro's SVI", captured),
    Goal("P3", "CompiledSVI / NumPyro's jitted update", beside_numpyro),
    Goal("P4", "CompiledSVI / PyTorch by hand, compiled", beside_pytorch),
    Goal("P4b", "CompiledSVI / the matrix products alone", beside_products),
    Goal("P5", "Enumerated: CompiledSVI / TraceEnum_ELBO", enumerated),
    Goal("P6", "All terms / none", recording),
    Goal("P7", "1,000 vectorised particles / 1, eight schools", particles),
    Goal("P8", "Seconds to the first compiled step, cold", first_steps),
    Goal("P9", "Largest relative difference from eager after 20 steps", agreement),
    Goal("P10", "Without a compiler, or where capture is impossible", fallback),
)
