"""The benchmarks run, and the tables that are kept are theirs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from models import PROGRAMS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gradient_variance.py"


def names(table):
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    return [row.removeprefix("| ") for row in rows[2:]]


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
