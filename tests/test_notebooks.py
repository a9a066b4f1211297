"""Every notebook runs in a fresh kernel, shows what it has stored, and keeps the rules."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat import v4
from run_notebooks import main, run

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("*.ipynb"))]
MAX_BYTES = 400_000
MAX_CELLS = 30
# Home directories, installed packages, a kernel's cells, addresses of objects.
OF_A_MACHINE = re.compile(r"/(home|root|Users)/|\\Users\\|site-packages|ipykernel_|0x[0-9a-f]{6}")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(output):
    """A stream's name, an error, or the formats of what is displayed."""
    return set(output.get("data", [output.get("name", output.output_type)]))


def shown(notebook):
    """The kinds of output of each code cell."""
    return [set().union(*map(kinds, cell.outputs)) for cell in code_cells(notebook)]


def texts(cell):
    """What a cell puts out as text; the letters of an encoded image mean nothing."""
    for output in cell.outputs:
        data = output.get("data", {})
        yield from (str(data[kind]) for kind in data if not kind.startswith("image/"))
        yield output.get("text", "")


def faults(name, notebook):
    """The rules that a notebook breaks."""
    code, last = code_cells(notebook), notebook.cells[-1]
    markdown = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    answers = [cell for cell in code if cell.metadata.get("jupyter", {}).get("source_hidden")]
    kept = {
        "a file name with its number in order": re.match(r"\d\d_[a-z0-9_]+\.ipynb$", name),
        f"at most {MAX_BYTES} bytes": len(nbformat.writes(notebook).encode()) <= MAX_BYTES,
        f"at most {MAX_CELLS} cells": len(notebook.cells) <= MAX_CELLS,
        "the kernel python3": notebook.metadata.get("kernelspec", {}).get("name") == "python3",
        "run from top to bottom": [cell.execution_count for cell in code]
        == list(range(1, len(code) + 1)),
        "figures": "image/png" in set().union(*shown(notebook)),
        "neither errors nor warnings": not set().union(*shown(notebook)) & {"error", "stderr"},
        "nothing of one machine": not any(
            OF_A_MACHINE.search(text) for cell in code for text in texts(cell)
        ),
        "no code in prose": not any(re.search(r"^\s*(```|~~~)", text, re.M) for text in markdown),
        "checks": any(re.search(r"^\s*assert ", cell.source, re.M) for cell in code),
        "an answer that is folded away": answers,
        "references at the end": last.cell_type == "markdown" and "## References" in last.source,
    }
    return [rule for rule, holds in kept.items() if not holds]


def keeping_all_rules():
    """The smallest notebook without a fault."""
    figure = v4.new_output("display_data", {"image/png": "/home/someone", "text/plain": "<Figure>"})
    answer = v4.new_code_cell(
        "assert 1 + 1 == 2",
        execution_count=1,
        outputs=[v4.new_output("stream", text="1 nat"), figure],
        metadata={"jupyter": {"source_hidden": True}},
    )
    references = v4.new_markdown_cell("## References")
    kernel = {"name": "python3", "display_name": "Python 3"}
    return v4.new_notebook(cells=[answer, references], metadata={"kernelspec": kernel})


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_notebook_keeps_the_rules(path):
    assert faults(path.name, nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_notebook_runs_and_shows_what_it_has_stored(path):
    assert shown(run(path, smoke=True)) == shown(nbformat.read(path, as_version=4))


def test_outputs_are_kept_and_what_it_took_is_said(tmp_path, capsys):
    path = tmp_path / "01_name.ipynb"
    cell = v4.new_code_cell("import os\nos.environ.get('PYRO_ELBO_SMOKE')")
    nbformat.write(v4.new_notebook(cells=[cell, v4.new_code_cell("6 * 7")]), path)
    main([path])
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [1, 2]
    assert [len(cell.outputs) for cell in cells] == [0, 1]
    assert cells[1].outputs[0].data["text/plain"] == "42"
    assert re.match(r"01_name +\d+ s +\d+ MiB$", capsys.readouterr().out)


def test_a_notebook_without_a_fault_has_none():
    assert faults("01_name.ipynb", keeping_all_rules()) == []


def test_the_number_is_missed():
    assert faults("name.ipynb", keeping_all_rules()) == ["a file name with its number in order"]


def too_large(notebook):
    notebook.cells[0].outputs[1].data["image/png"] = "0" * MAX_BYTES


def too_long(notebook):
    notebook.cells[:0] = [v4.new_markdown_cell() for _ in range(MAX_CELLS)]


def without_kernel(notebook):
    notebook.metadata = {}


def never_run(notebook):
    notebook.cells[0].execution_count = None


def without_figures(notebook):
    del notebook.cells[0].outputs[1]


def with_a_warning(notebook):
    notebook.cells[0].outputs[0].name = "stderr"


def with_an_address(notebook):
    notebook.cells[0].outputs[1].data["text/plain"] = "<Axes at 0x7f00deadbeef>"


def with_a_path(notebook):
    notebook.cells[0].outputs[0].text = "saved in /home/someone/figures"


def with_code_in_prose(notebook):
    notebook.cells[1].source = "```python\nloss\n```\n## References"


def without_checks(notebook):
    notebook.cells[0].source = "print('assert')"


def without_answer(notebook):
    notebook.cells[0].metadata = {}


def without_references(notebook):
    notebook.cells.reverse()


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (too_large, "at most 400000 bytes"),
        (too_long, "at most 30 cells"),
        (without_kernel, "the kernel python3"),
        (never_run, "run from top to bottom"),
        (without_figures, "figures"),
        (with_a_warning, "neither errors nor warnings"),
        (with_an_address, "nothing of one machine"),
        (with_a_path, "nothing of one machine"),
        (with_code_in_prose, "no code in prose"),
        (without_checks, "checks"),
        (without_answer, "an answer that is folded away"),
        (without_references, "references at the end"),
    ],
)
def test_a_fault_is_found(fault, rule):
    notebook = keeping_all_rules()
    fault(notebook)
    assert faults("01_name.ipynb", notebook) == [rule]
