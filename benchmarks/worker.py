"""A process of its own for a variant on a workload: it takes as many steps as it is told to."""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict
from time import perf_counter
from typing import Any

from .results import NOT_INSTALLED
from .variants import Cell, maker

__all__ = ["BrokenWorkerError", "Worker", "main"]

PATIENCE = 400.0


class BrokenWorkerError(RuntimeError):
    """A worker ended, or took too long."""


class Worker:
    """The other end of such a process.

    Args:
        cell: What it measures.
        environment: Its environment.

    Raises:
        BrokenWorkerError: It did not come to its first step; it says why.
    """

    def __init__(self, cell: Cell, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(cell))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            ready = self._read()
        except BrokenWorkerError:
            self.kill()
            raise
        self.first_seconds, self.steps = ready["first_seconds"], ready["steps"]

    def time(self, calls: int) -> float:
        """The seconds that so many calls take."""
        return float(self._ask(calls)["seconds"])

    def close(self) -> float:
        """End it; its peak memory in MB."""
        try:
            return float(self._ask(0)["peak"])
        finally:
            self.kill()

    def kill(self) -> None:
        """End it whatever it does."""
        self.process.kill()
        self.process.communicate()

    def _ask(self, calls: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{calls}\n")
            self.process.stdin.flush()
        except OSError as error:
            raise BrokenWorkerError("its process ended") from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise BrokenWorkerError(f"no answer in {PATIENCE:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise BrokenWorkerError("its process ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BrokenWorkerError(answer["error"])
        return answer


def stay_on_one_core() -> None:
    """Have all threads share a core, where the system can: some libraries take more than told."""
    if not hasattr(os, "sched_setaffinity"):
        return
    core = max(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread), {core})


def serve(cell: Cell, answer: Any) -> None:
    """Take the first step, and then as many as each line of the input says; 0 is the end.

    The first may have all cores, as it may compile; the others have one.
    """
    make = maker(cell.variant)
    start = perf_counter()
    stepper = make(cell)
    stepper.call()
    first_seconds = perf_counter() - start
    stay_on_one_core()
    answer({"first_seconds": first_seconds, "steps": stepper.steps})
    for line in sys.stdin:
        if not int(line):
            break
        start = perf_counter()
        for _ in range(int(line)):
            stepper.call()
        answer({"seconds": perf_counter() - start})
    answer({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


def main() -> None:
    """Serve the cell that the command line names."""
    warnings.simplefilter("ignore")
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=output, flush=True)

    try:
        serve(Cell(**json.loads(sys.argv[1])), answer)
    except ImportError as error:
        answer({"error": f"{NOT_INSTALLED}: {error.name}"})
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        answer({"error": f"{type(error).__name__}: {first[:300]}"})
    output.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
