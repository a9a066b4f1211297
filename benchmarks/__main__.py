"""Measures what a step costs, and writes results, tables and figures: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .figures import draw
from .harness import CHUNK
from .measure import AT_A_TIME, measure
from .results import Results
from .table import page
from .tasks import QUICK, QUICK_CHUNK, TASKS
from .variants import VARIANTS

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).parent / "results"


def parsed() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds of a few tasks")
    parser.add_argument("--only", action="append", metavar="TASK", help="run this task alone")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=(), metavar="VARIANT")
    parser.add_argument("--again", action="store_true", help="also what was measured already")
    parser.add_argument("--kept", type=Path, help="where each task's results are kept")
    parser.add_argument("--output", type=Path, help="where results.json and table.md go")
    parser.add_argument("--figures", type=Path, help="where the figures go")
    options = parser.parse_args()
    unknown = set(options.only or ()) - set(TASKS)
    if unknown:
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    kept = KEPT / ("quick" if options.quick else "full")
    options.kept = options.kept or kept
    options.output = options.output or (kept if options.quick else ROOT / "docs" / "benchmarks")
    options.figures = options.figures or (kept if options.quick else ROOT / "docs" / "_static")
    return options


def run(options: argparse.Namespace) -> None:
    """Run what is not kept yet."""
    options.kept.mkdir(parents=True, exist_ok=True)
    names = options.only or (QUICK if options.quick else TASKS)
    with TemporaryDirectory() as scratch, ThreadPoolExecutor(AT_A_TIME) as pool:
        take = partial(run_task, options, Path(scratch))
        for name in names:
            if not TASKS[name].module:
                take(name)
        list(pool.map(take, (name for name in names if TASKS[name].module)))


def run_task(options: argparse.Namespace, scratch: Path, name: str) -> None:
    """Run a task, unless it is kept."""
    path = options.kept / f"{name}.json"
    if path.exists() and not options.again:
        print(f"{name}: kept", flush=True)
        return
    task = TASKS[name].of(options.variants)
    chunk = QUICK_CHUNK if options.quick else CHUNK
    record = measure(task.quick if options.quick else task, scratch, chunk)
    path.write_text(json.dumps(record), encoding="utf-8")
    print(f"{name}: {record['seconds']:.0f} s", flush=True)


def gathered(options: argparse.Namespace) -> dict[str, Any]:
    """All that is kept, in the order of the tasks."""
    paths = {name: options.kept / f"{name}.json" for name in TASKS}
    tasks = {name: json.loads(p.read_text("utf-8")) for name, p in paths.items() if p.exists()}
    newest = max(tasks.values(), key=lambda task: task["date"])
    about = {key: newest[key] for key in ("date", "machine", "versions")}
    for task in tasks.values():
        del task["machine"], task["versions"]
    return {"about": {**about, "quick": options.quick}, "tasks": tasks}


def main() -> None:
    """Measure, and write."""
    options = parsed()
    run(options)
    found = gathered(options)
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=None, separators=(",", ":")).replace('{"name"', '\n{"name"')
    (options.output / "results.json").write_text(text + "\n", encoding="utf-8")
    results = Results(found["about"], found["tasks"])
    table = page(results)
    (options.output / "table.md").write_text(table, encoding="utf-8")
    draw(results, options.figures)
    print(table)


if __name__ == "__main__":
    main()
