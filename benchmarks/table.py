"""The measurements as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .goals import GOALS, Goal, Row
from .harness import Quartiles
from .results import NOT_INSTALLED, Results, Value
from .tasks import GROWING, GROWTH
from .variants import LABELS
from .workloads import WORKLOADS

__all__ = ["page"]

HEAD = """# Benchmarks

Regenerate with `make bench`; the numbers behind the tables are in `docs/benchmarks/results.json`.

{date}, {processor}, {cores} cores, one thread for each process; {versions}.{note}

Each variant runs in a process of its own, and the processes take turns: a round is about 40 ms of
each, or two steps, in rotated order, after 10 ms that are not timed where a step takes less.
All share one core, as JAX takes two where it finds them, whatever it is told. A ratio is that of a
round's two times; the table has its median and quartiles over the rounds. It passes where its lower
quartile does. "–": not measured.
Seconds to a first step leave imports out, that of torch's compiler among them, and two processes
take theirs at a time; a compiled one's leave out what the run's first compilation builds for all.
In P8 a process has the machine for itself, and its compiler's cache is empty; a later process has
what the first one compiled there. NumPyro is left out of `scalar_sites`, whose 100 sites take it
minutes to compile.
"""
STEPS_FIGURE = "\n![ms per step: each workload, each variant](../_static/step_times.svg)\n"
GROWTH_FIGURE = "\n![ms per step as the workloads grow](../_static/step_growth.svg)\n"
QUICK = "\n\n**A quick run: too few rounds to conclude from.**"
SHOWN = (
    *("trace", "gap", "kl", "compiled", "compiled_10", "by_hand", "by_hand_compiled"),
    *("by_hand_whole", "numpyro", "numpyro_scan", "pymc"),
)


def number(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:,.{3 if value < 1 else 2}f}"


def shown(value: Value) -> str:
    """A measurement."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, Quartiles):
        return f"{number(value.median)} ({number(value.lower)} to {number(value.upper)})"
    return number(value)


def limit(row: Row, most: float | None) -> str:
    """A limit, and whether it holds."""
    if most is None:
        return "–"
    word = {True: "yes", False: "**no**", None: "–"}[row.holds(most)]
    return f"≤ {most:g}: {word}"


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    table = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def goal_table(goal: Goal, results: Results) -> str:
    """A goal's section."""
    rows = [
        [row.what, shown(row.value), limit(row, row.must), limit(row, row.aim)]
        for row in goal.rows(results)
    ]
    return f"\n## {goal.name}. {goal.title}\n\n" + lines(["", "measured", "must", "aim"], rows)


def by_workload(title: str, results: Results, key: str) -> str:
    """One number of every variant on every workload."""

    def cell(workload: str, variant: str) -> str:
        if key == "microseconds":
            value = results.time(workload, variant)
            return number(value.median) if isinstance(value, Quartiles) else shown(value)
        value = results.read(workload, variant, key)
        return f"{value:,.1f}" if isinstance(value, float) else shown(value)

    rows = [[LABELS[v], *(cell(workload, v) for workload in WORKLOADS)] for v in SHOWN]
    return f"\n## {title}\n\n" + lines(["", *WORKLOADS], rows)


def growth_tables(results: Results) -> Iterator[str]:
    """The microseconds of a step as something grows."""
    for what, (workload, values) in GROWTH.items():
        key = "particles" if what == "particles" else "size"

        def cell(value: int, variant: str, what: str = what, key: str = key) -> str:
            return shown(results.time(f"growth_{what}", variant, **{key: value}))

        rows = [[LABELS[v], *(cell(value, v) for value in values)] for v in GROWING]
        head = ["", *(f"{value:,} {what}" for value in values)]
        yield f"\n## Growth with {what}: µs per step on {workload}\n\n" + lines(head, rows)


def errors(results: Results) -> str:
    """What broke, and why."""
    found = [
        f"- `{entry['workload']}`, {LABELS[entry['variant']]}: {entry['error']}\n"
        for task in results.tasks
        for entry in results.cells(task)
        if not entry.get("error", NOT_INSTALLED).startswith(NOT_INSTALLED)
    ]
    found += [
        f"- `{name}`: {record['found']['error']}\n"
        for name, record in results.tasks.items()
        if "error" in record.get("found", {})
    ]
    return "\n## What breaks\n\n" + "".join(dict.fromkeys(found)) if found else ""


def page(results: Results) -> str:
    """The whole file."""
    about = results.about
    head = HEAD.format(
        date=about["date"],
        processor=about["machine"]["processor"],
        cores=about["machine"]["cores"],
        versions=", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        note=QUICK if about["quick"] else "",
    )
    parts = [head, *(goal_table(goal, results) for goal in GOALS)]
    parts += [by_workload("µs per step", results, "microseconds"), STEPS_FIGURE]
    parts.append(by_workload("Seconds to the first step", results, "first_seconds"))
    parts.append(by_workload("Peak memory of the process, MB", results, "peak_mb"))
    grown = list(growth_tables(results))
    return "".join([*parts, *grown, GROWTH_FIGURE if grown else "", errors(results)])
