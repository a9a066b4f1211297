"""The benchmarks run, and the tables that are kept are theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import PROGRAMS
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from benchmarks import measure
from benchmarks.goals import GOALS, Row
from benchmarks.harness import interleave, quartiles, ratios
from benchmarks.measure import environment_of
from benchmarks.results import BREAKS, Results
from benchmarks.table import limit, page, shown
from benchmarks.tasks import COLD, TASKS
from benchmarks.variants import LABELS, VARIANTS, Cell
from benchmarks.worker import Worker
from benchmarks.workloads import SIZED

ROOT = Path(__file__).parents[1]
SMALLER = {"vae": 8, "vae_wide": 8, "scalar_sites": 10, "nested_plates": 2}
NUM_LOSSES = 60
SCRIPT = ROOT / "benchmarks" / "gradient_variance.py"


def names(table):
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    return [row.removeprefix("| ") for row in rows[2:]]


@pytest.mark.slow
def test_the_table_of_variances_has_every_program(tmp_path):
    output = tmp_path / "table.md"
    command = [sys.executable, SCRIPT, "--evaluations", "5", "--output", output]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    sampled = [name for name, build in PROGRAMS.items() if not build().exact]
    assert names(output.read_text()) == sampled
    assert names(SCRIPT.with_suffix(".md").read_text()) == sampled


@pytest.mark.slow
def test_fit_costs_at_most_5_percent_of_a_bare_loop():
    command = [sys.executable, ROOT / "benchmarks" / "fit_overhead.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    lower = float(re.search(r"quartiles ([\d.]+)", done.stdout)[1])
    assert lower <= 1.05, done.stdout


@pytest.mark.parametrize("name", SIZED)
def test_a_workload_by_hand_has_the_mean_of_pyros_elbo(name):
    torch.set_default_dtype(torch.float32)
    workload = SIZED[name](*[SMALLER[name]] if name in SMALLER else [])
    guide, by_hand = workload.make_guide(), workload.by_hand
    loss = TraceEnum_ELBO if workload.enumerates else Trace_ELBO
    elbo = loss(max_plate_nesting=workload.max_plate_nesting)
    parameters = by_hand.make_parameters()
    with torch.no_grad():
        own = [by_hand.loss(parameters, *workload.arguments) for _ in range(NUM_LOSSES)]
        theirs = [elbo.loss(workload.model, guide, *workload.arguments) for _ in range(NUM_LOSSES)]
    own, theirs = torch.stack(own).double() + by_hand.constant, torch.tensor(theirs).double()
    error = ((own.var() + theirs.var()) / NUM_LOSSES).sqrt()
    assert (own.mean() - theirs.mean()).abs() <= 5 * error


def test_rounds_are_interleaved_and_rotated_and_what_breaks_is_left_out():
    seen = []

    def timer(name):
        def time(calls):
            seen.append(name)
            if name == "c":
                raise ValueError("no")
            return 0.04 * calls

        return time

    times, broken = interleave({name: timer(name) for name in "abc"}, num_rounds=3)
    assert broken == {"c": "ValueError: no"}
    assert times == {"a": [0.04] * 3, "b": [0.04] * 3}
    assert "".join(seen) == "aaaabbbbc" + "ab" + "ba" + "ab"


def test_a_visit_is_as_long_as_its_steps_are_and_begins_untimed():
    taken = []

    def timer(calls):
        before = sum(taken)
        taken.append(calls)
        eager = sum(number & (number - 1) == 0 for number in range(before + 1, sum(taken) + 1))
        return 1e-4 * calls + 1e-2 * eager

    times, _ = interleave({"compiled": timer}, num_rounds=2, chunk=0.04)
    assert taken[-4:] == [100, 400, 100, 400]
    assert times["compiled"][0] == pytest.approx(1e-4)


def test_a_visit_has_two_steps_however_slow_they_are():
    taken = []

    def timer(calls):
        taken.append(calls)
        return 0.3 * calls

    times, _ = interleave({"eager": timer}, num_rounds=2, chunk=0.04)
    assert taken[-2:] == [2, 2]
    assert times["eager"] == [0.3, 0.3]


def test_what_begins_with_an_empty_cache_begins_again_with_what_that_has(monkeypatch, tmp_path):
    folders, killed = [], []

    class Started:
        def __init__(self, cell, environment):
            folders.append(environment["TORCHINDUCTOR_CACHE_DIR"])
            self.first_seconds = 8.0 / len(folders)

        def kill(self):
            killed.append(self)

    monkeypatch.setattr(measure, "Worker", Started)
    monkeypatch.setattr(measure, "write_arrays", lambda cell: None)
    workers, cold, other = {}, {}, {}
    measure.start(COLD[0], True, tmp_path, cold, workers)
    assert cold == {"first_seconds": 8.0, "again_seconds": 4.0}
    assert len(killed) == 1 and workers[COLD[0].name] not in killed
    measure.start(Cell("three_level", "kl"), False, tmp_path, other, workers)
    assert list(other) == ["first_seconds"]
    assert folders[0] == folders[1] != folders[2]
    assert {cell for task in TASKS.values() for cell in task.cold} == set(COLD)
    assert not TASKS["recording_three_level"].cold


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot tell")
def test_all_threads_of_a_process_that_is_timed_share_a_core(tmp_path):
    environment = environment_of(tmp_path)
    worker = Worker(Cell("eight_schools", "by_hand"), environment)
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{worker.process.pid}/task")]
        cores = {core for thread in threads for core in os.sched_getaffinity(thread)}
        assert len(cores) == 1
        assert worker.time(2) > 0
    finally:
        worker.kill()


def test_a_ratio_is_of_the_rounds_and_passes_on_its_lower_quartile():
    value = ratios([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert value == quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)
    row = Row("it", value, must=2.0, aim=1.9)
    assert (limit(row, row.must), limit(row, row.aim)) == ("≤ 2: yes", "≤ 1.9: **no**")


def test_a_missing_library_leaves_a_dash_and_what_breaks_says_so():
    cells = [
        {"workload": "vae", "variant": "trace", "microseconds": [2.0, 2.0]},
        {"workload": "vae", "variant": "numpyro", "error": "not installed: jax"},
        {"workload": "vae", "variant": "compiled", "error": "RuntimeError: no graph"},
    ]
    about = {"date": "", "machine": {"processor": "", "cores": 1}, "versions": {}, "quick": True}
    results = Results(about, {"vae": {"cells": cells}})
    assert shown(results.ratio("vae", "trace", "numpyro")) == "–"
    assert shown(results.ratio("vae", "trace", "compiled")) == BREAKS
    text = page(results)
    assert "CompiledSVI, TraceKL_ELBO: RuntimeError: no graph" in text
    assert "not installed" not in text


def test_every_variant_has_a_label_and_every_cell_its_parts():
    assert LABELS.keys() == VARIANTS.keys()
    for task in TASKS.values():
        assert bool(task.cells) != bool(task.module)
        assert len({cell.name for cell in task.cells}) == len(task.cells)
        assert {cell.variant for cell in task.cells} <= VARIANTS.keys()
        assert {cell.workload for cell in task.cells} <= SIZED.keys()


@pytest.mark.slow
def test_a_quick_run_writes_its_results_and_its_tables(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--variants", "trace", "by_hand"]
    command += ["--only", "eight_schools", "--only", "three_level"]
    command += ["--kept", tmp_path, "--output", tmp_path, "--figures", tmp_path]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "eight_schools: kept" in done.stdout
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["tasks"]) == ["eight_schools", "three_level"]
    for task in found["tasks"].values():
        for cell in task["cells"]:
            assert len(cell["microseconds"]) == 5
            assert cell["first_seconds"] > 0 < cell["peak_mb"]
    assert all(f"## {goal.name}. " in (tmp_path / "table.md").read_text() for goal in GOALS)
    assert (tmp_path / "step_times.svg").exists()


def test_the_readme_says_what_the_kept_results_say():
    kept = json.loads((ROOT / "docs" / "benchmarks" / "results.json").read_text())
    results = Results(kept["about"], kept["tasks"])
    said = re.search(
        r"eight schools took ([\d.]+) of the time of\s.*, a small VAE ([\d.]+)\.",
        (ROOT / "README.md").read_text(),
    )
    for number, name in zip(said.groups(), ("eight_schools", "vae"), strict=True):
        assert number == f"{results.ratio(name, 'compiled', 'trace').median:.2f}", name


def test_the_kept_table_is_that_of_the_kept_results():
    kept = json.loads((ROOT / "docs" / "benchmarks" / "results.json").read_text())
    table = (ROOT / "docs" / "benchmarks" / "table.md").read_text()
    assert table == page(Results(kept["about"], kept["tasks"]))
    for figure in ("step_times.svg", "step_growth.svg"):
        assert f"](../_static/{figure})" in table
        assert (ROOT / "docs" / "_static" / figure).exists()
