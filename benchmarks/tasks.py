"""What is measured side by side: each task has its own rounds and its own file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .variants import Cell
from .workloads import SMALL, WORKLOADS

__all__ = ["COLD", "GROWING", "GROWTH", "QUICK", "TASKS", "Task"]

STANDARD = (
    *("trace", "gap", "kl", "compiled"),
    *("by_hand", "by_hand_compiled", "by_hand_whole", "numpyro", "numpyro_scan"),
)
EXTRA = {
    "vae": ("products", "numpyro_products"),
    "eight_schools": ("compiled_10", "pymc"),
    "logistic": ("pymc",),
    "logistic_subsampled": ("compiled_10",),
}
LEFT_OUT = {"scalar_sites": ("by_hand_whole", "numpyro", "numpyro_scan")}
"""What takes minutes to its first step; growth has NumPyro at fewer sites."""

GROWTH = {
    "particles": ("eight_schools", (1, 100, 1_000)),
    "batch": ("vae", (32, 512, 2_048)),
    "sites": ("scalar_sites", (1, 10, 30)),
    "plates": ("nested_plates", (1, 2, 4)),
}
GROWING = ("trace", "kl", "compiled", "numpyro")
ROUNDS, FEWER_ROUNDS, ROUNDS_OF_RECORDING = 25, 15, 60
SLOW = ("vae_wide", "semi_supervised")
"""The workloads whose steps take so long that they have fewer rounds."""

COLD = (
    *(Cell("three_level", variant) for variant in ("compiled", "by_hand_whole")),
    Cell("scalar_sites", "compiled"),
)
"""What is compiled with an empty cache, for the time to its first step."""

NO_COMPILER = (("CXX", "no-such-compiler"),)
QUICK_ROUNDS, QUICK_CHUNK = 5, 0.02


@dataclass(frozen=True)
class Task:
    """A part of the run.

    Args:
        name: Its name.
        cells: What its rounds visit.
        num_rounds: How many rounds.
        module: What measures something else than rounds, of ``argument``, in its own process.
        argument: That argument.
        environment: What its environment has besides.
    """

    name: str
    cells: tuple[Cell, ...] = ()
    num_rounds: int = ROUNDS
    module: str = ""
    argument: str = ""
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def quick(self) -> Task:
        """The same in few rounds."""
        return replace(self, num_rounds=QUICK_ROUNDS)

    @property
    def cold(self) -> tuple[Cell, ...]:
        """Those of its cells that begin with an empty cache: on the workload's own task only."""
        return tuple(cell for cell in self.cells if cell in COLD and cell.workload == self.name)

    def of(self, variants: Sequence[str]) -> Task:
        """The same with some of the variants only."""
        cells = [cell for cell in self.cells if not variants or cell.variant in variants]
        return replace(self, cells=tuple(cells))


def on_workload(name: str) -> Task:
    """All variants of a workload."""
    left_out = LEFT_OUT.get(name, ())
    variants = [v for v in STANDARD + EXTRA.get(name, ()) if v not in left_out]
    num_rounds = FEWER_ROUNDS if name in SLOW else ROUNDS
    return Task(name, tuple(Cell(name, variant) for variant in variants), num_rounds)


def recording(name: str) -> Task:
    """The loss with its terms and without."""
    variants = ("kl", "kl_bare", "compiled", "compiled_bare")
    cells = tuple(Cell(name, variant) for variant in variants)
    return Task(f"recording_{name}", cells, ROUNDS_OF_RECORDING)


def growing(what: str, workload: str, values: Sequence[int]) -> Task:
    """Some variants at each of the values."""

    def cell(value: int, variant: str) -> Cell:
        if what == "particles":
            return Cell(workload, variant, particles=value)
        return Cell(workload, variant, size=value)

    cells = tuple(cell(value, variant) for value in values for variant in GROWING)
    return Task(f"growth_{what}", cells, FEWER_ROUNDS)


def all_tasks() -> dict[str, Task]:
    """Every task by its name, in the order that they run in."""
    tasks = [on_workload(name) for name in WORKLOADS]
    tasks += [recording(name) for name in (*SMALL, "vae")]
    tasks += [Task(f"agreement_{name}", module="agreement", argument=name) for name in WORKLOADS]
    tasks += [
        Task("fallback", module="fallback", argument="eight_schools", environment=NO_COMPILER)
    ]
    tasks += [growing(what, *of) for what, of in GROWTH.items()]
    return {task.name: task for task in tasks}


TASKS = all_tasks()
QUICK = ("vae", "eight_schools", "agreement_eight_schools", "fallback")
"""What a quick run does, unless it is told what."""
