"""Takes the measurements of a task, and says on what machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from .data import FOLDER, write_arrays
from .harness import interleave
from .tasks import Task
from .variants import Cell
from .worker import BrokenWorkerError, Worker

__all__ = ["AT_A_TIME", "machine", "measure", "versions"]

ROOT = Path(__file__).parents[1]
PACKAGES = ("pyro-elbo", "torch", "pyro-ppl", "numpyro", "jax", "pymc", "pytensor", "numpy")
ONE_THREAD = {
    **dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "NPROC": "1",  # XLA heeds this, and not always its flags
}
DIGITS = 4
AT_A_TIME = 2
"""The processes that run at a time where no step is timed but the first."""


def machine() -> dict[str, Any]:
    """The class of this machine: its processor, and how many cores this process may use."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": cores,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Those of the libraries that are installed."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package).split("+")[0]
        except PackageNotFoundError:
            continue
    return found


def environment_of(scratch: Path, cold: bool = False) -> dict[str, str]:
    """One thread for each library, and a cache of compiled code that the run shares, or a cold one.

    The first compilation of a run builds what all others use: the precompiled headers, which torch
    keeps in the folder for temporary files.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    folder = Path(mkdtemp(dir=scratch)) if cold else scratch / "inductor"
    folder.mkdir(exist_ok=True)
    return {
        **os.environ,
        **ONE_THREAD,
        FOLDER: str(scratch),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "TMPDIR": str(folder),
        "PYTENSOR_FLAGS": f"base_compiledir={scratch / 'pytensor'}",
    }


def rounded(value: float) -> float:
    """To the digits that are kept."""
    return float(f"{value:.{DIGITS}g}")


def timed(task: Task, scratch: Path, chunk: float) -> list[dict[str, Any]]:
    """The rounds of each cell, or its error."""
    os.environ[FOLDER] = str(scratch)
    entries: dict[str, dict[str, Any]] = {cell.name: asdict(cell) for cell in task.cells}
    workers: dict[str, Worker] = {}
    try:
        start_all(task, scratch, entries, workers)
        timers = {name: workers[name].time for name in entries if name in workers}
        times, broken = interleave(timers, task.num_rounds, chunk)
        for name, error in broken.items():
            entries[name]["error"] = error
        for name, own in times.items():
            steps = workers[name].steps
            entries[name]["microseconds"] = [rounded(1e6 * seconds / steps) for seconds in own]
            entries[name]["peak_mb"] = rounded(workers[name].close())
    finally:
        for worker in workers.values():
            worker.kill()
    return list(entries.values())


def start_all(
    task: Task, scratch: Path, entries: dict[str, dict[str, Any]], workers: dict[str, Worker]
) -> None:
    """Start the workers, two at a time, but for those that have an empty cache."""

    def begin(cell: Cell) -> None:
        start(cell, cell in task.cold, scratch, entries[cell.name], workers)

    for cell in task.cold:
        begin(cell)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(begin, (cell for cell in task.cells if cell not in task.cold)))


def start(
    cell: Cell, cold: bool, scratch: Path, entry: dict[str, Any], workers: dict[str, Worker]
) -> None:
    """Start a cell's worker, or note why not; one that had an empty cache is started again."""
    try:
        write_arrays(cell)
        environment = environment_of(scratch, cold)
        worker = workers[cell.name] = Worker(cell, environment)
        entry["first_seconds"] = rounded(worker.first_seconds)
        if cold:
            worker.kill()
            worker = workers[cell.name] = Worker(cell, environment)
            entry["again_seconds"] = rounded(worker.first_seconds)
    except BrokenWorkerError as error:
        entry["error"] = str(error)


def found_by(task: Task, scratch: Path) -> Mapping[str, Any]:
    """What a task's module says."""
    command = [sys.executable, "-m", f"benchmarks.{task.module}", task.argument]
    environment = {**environment_of(scratch), **dict(task.environment)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


def measure(task: Task, scratch: Path, chunk: float) -> dict[str, Any]:
    """The record of a task."""
    begin = datetime.now(UTC)
    run = partial(found_by, task, scratch) if task.module else partial(timed, task, scratch, chunk)
    key = "found" if task.module else "cells"
    record: dict[str, Any] = {"name": task.name, "date": f"{begin:%Y-%m-%d}", key: run()}
    record |= {"machine": machine(), "versions": versions()}
    record["seconds"] = round((datetime.now(UTC) - begin).total_seconds(), 1)
    return record
