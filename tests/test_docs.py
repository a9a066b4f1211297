"""The documentation: its code is run, its names exist, its figures are drawn, its links lead on."""

import re
import sys
from importlib import import_module
from inspect import isclass, isroutine
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
PAGES += [*sorted(DOCS.glob("guides/*.md")), *sorted(DOCS.glob("api/*.md"))]
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
# What `make pages` runs, what a shell runs, an entry to cite, and a directive of Sphinx's.
KINDS = re.compile(r"pycon|console|bibtex|\{[\w-]+\}.*")
PUBLIC = [
    "pyro_elbo",
    *[f"pyro_elbo.{name}" for name in ("diagnostics", "elbo", "evidence", "plots", "reference")],
    *[f"pyro_elbo.{name}" for name in ("schedules", "steppers", "terms", "training")],
    *[f"pyro_elbo.training.{name}" for name in ("lightning", "loaders")],
]


def blocks(text):
    """The kind and the lines of every fenced block."""
    return [(m[1].strip(), m[2]) for m in re.finditer(r"^```(.*)\n([\s\S]*?)^```$", text, re.M)]


def faults_of_blocks(text):
    """The blocks that nothing runs, and those whose end a doctest would misread."""
    found = [f"a block of kind {kind!r}" for kind, _ in blocks(text) if not KINDS.fullmatch(kind)]
    for kind, body in blocks(text):
        if kind == "pycon" and not (body.startswith(">>> ") and body.endswith("\n\n")):
            found.append(f"no blank line at the end of {body.splitlines()[0]!r}")
    return found


@every_page
def test_every_block_is_one_that_something_runs(path):
    assert faults_of_blocks(path.read_text(encoding="utf-8")) == []


def test_a_block_that_nothing_runs_is_found():
    assert len(faults_of_blocks("```python\nx = 1\n```\n\n```\n$ x\n```\n")) == 2
    assert len(faults_of_blocks("```pycon\n>>> 1 + 1\n2\n```\n")) == 1
    assert faults_of_blocks("```pycon\n>>> 1 + 1\n2\n\n```\n\n```{toctree}\na\n```\n") == []


@every_page
def test_every_command_and_every_file_that_is_named_is_there(path):
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", text, re.M)) <= targets
    files = [
        ROOT / name
        for name in re.findall(r"`((?:tests|docs|benchmarks|notebooks)/[\w./]+\.\w+)`", text)
    ]
    files += [
        path.parent / name for name in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
    ]
    # Sphinx finds the notebooks in a copy, beside the pages.
    places = [str(file.resolve()).replace("docs/notebooks/", "notebooks/") for file in files]
    assert [place for place in places if not Path(place).exists()] == []


def documented():
    """Every object with an entry; Sphinx leaves out data that a package takes from elsewhere."""
    found = []
    for path in DOCS.glob("api/*.md"):
        text = path.read_text(encoding="utf-8")
        for name, left_out in re.findall(
            r"automodule:: ([\w.]+)\n(?:   :exclude-members: (.*))?", text
        ):
            module = import_module(name)
            values = [
                getattr(module, each) for each in set(module.__all__) - set(left_out.split(", "))
            ]
            found += [value for value in values if isclass(value) or isroutine(value)]
        for name in re.findall(r"auto(?:class|function|exception):: ([\w.]+)", text):
            module, _, each = name.rpartition(".")
            found.append(getattr(import_module(module), each))
        for each, name in re.findall(r"py:(?:data|type):: (\w+)\n   :module: ([\w.]+)", text):
            found.append(getattr(import_module(name), each))
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_object_has_its_place_in_the_api(name):
    module, objects = import_module(name), documented()
    public = {each: getattr(module, each) for each in module.__all__}
    missing = [each for each, value in public.items() if not any(value is one for one in objects)]
    assert [each for each in missing if type(public[each]) is not type(pytest)] == []


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    yield import_module
    for name in ("figures", "check_site"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["faces", "training", "concepts"])
def test_a_figure_is_drawn(scripts, name):
    figures = scripts("figures")
    options = {"num_steps": 3} if name == "training" else {}
    _, ax = plt.subplots()
    getattr(figures, f"draw_{name}")(ax, **options)
    assert ax.texts or ax.lines
    assert (DOCS / "_static" / f"{name}.svg").exists()


WHOLE = '<title>a</title><p id="here">text</p><a href="#here">here</a><img src="a.png" alt="a">'
BROKEN = {
    "a link that leads nowhere": WHOLE + '<a href="b.html">b</a>',
    "an anchor that is not there": WHOLE + '<a href="index.html#there">there</a>',
    "an image that is not there": WHOLE + '<img src="b.png" alt="b">',
    "an image without words": WHOLE + '<img src="a.png">',
    "another server": WHOLE + '<script src="https://elsewhere/x.js"></script>',
    "an anchor twice": WHOLE + '<p id="here"></p>',
    "a role that was not rendered": WHOLE + "<p>{class}`x`</p>",
    "no title": WHOLE.replace("<title>a</title>", ""),
}


def site(folder, page):
    (folder / "a.png").touch()
    (folder / "index.html").write_text(page, encoding="utf-8")
    return folder


def test_a_whole_site_has_no_fault(scripts, tmp_path):
    code = "<pre><span>{class}`x`</span></pre><a href='https://elsewhere/'>elsewhere</a>"
    assert scripts("check_site").faults(site(tmp_path, WHOLE + code)) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_site_is_found(scripts, tmp_path, name):
    assert len(scripts("check_site").faults(site(tmp_path, BROKEN[name]))) == 1


def test_a_site_that_was_not_built_is_found(scripts, tmp_path):
    assert len(scripts("check_site").faults(tmp_path)) == 1
