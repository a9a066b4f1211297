"""CompiledSVI(ahead_of_time=...): steps as libraries that a later process loads, or refuses."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from test_compiled_svi import X, leaves, model, start, twenty

from pyro_elbo import TraceKL_ELBO, schedules
from pyro_elbo.capture import compilation, library, private
from pyro_elbo.capture.library import library_path

needs_compiler = pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")


@pytest.fixture
def built(monkeypatch):
    """A stand-in for the compiler; the list has every library that it built."""
    graphs = {}

    def build(graph, inputs, path):
        graphs[path.name] = graph
        path.write_text("whole")

    def load(path):
        if path.read_text() != "whole":
            raise RuntimeError("no library")
        return graphs[path.name]

    monkeypatch.setattr(library, "build_library", build)
    monkeypatch.setattr(library, "load_library", load)
    return graphs


def assert_close(some, others):
    some, others = torch.as_tensor(some), torch.as_tensor(others)
    assert torch.allclose(some, others, rtol=1e-6, atol=1e-6)


def ahead(folder, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        svi = start(compiles=True, ahead_of_time=folder, **kwargs)
        return twenty(svi), svi


def test_the_time_is_told_first_and_the_library_is_used_again(built, tmp_path):
    right = twenty(start(SVI))
    svi = start(compiles=True, ahead_of_time=tmp_path)
    with pytest.warns(UserWarning, match=r"ahead of time takes about \d+ s; the library is kept"):
        losses = twenty(svi)
    assert_close(losses, right)
    (file,) = tmp_path.iterdir()
    assert f"as the library {file.name}" in svi.explain()
    modified = file.stat().st_mtime_ns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = twenty(start(compiles=True, ahead_of_time=str(tmp_path)))
    assert again == losses
    assert [(f, f.stat().st_mtime_ns) for f in tmp_path.iterdir()] == [(file, modified)]


def test_another_schedule_and_learning_rate_are_the_same_library(built, tmp_path):
    ahead(tmp_path, loss=TraceKL_ELBO(beta=2.0))
    beta = schedules.Linear(4.0, 1.0, num_steps=10)
    ahead(tmp_path, loss=TraceKL_ELBO(beta=beta), optim=Adam({"lr": 0.01}))
    assert len(list(tmp_path.iterdir())) == 1


def test_another_program_shape_or_number_in_it_is_another_library(built, tmp_path):
    def shifted(by):
        def shifted_model(x):
            return model(x + by)

        return shifted_model

    ahead(tmp_path)
    ahead(tmp_path, loss=TraceKL_ELBO(num_particles=2))
    ahead(tmp_path, model=shifted(1.0))
    ahead(tmp_path, model=shifted(2.0))
    ahead(tmp_path, optim=Adam({"lr": 0.05, "weight_decay": 0.1}))
    ahead(tmp_path, steps_per_call=4)
    assert len(list(tmp_path.iterdir())) == 6


def test_other_versions_and_processors_are_refused(built, tmp_path, monkeypatch):
    graph = private.trace_operations(lambda x: [x + 1], X)
    here = library_path(graph, [X], tmp_path)
    assert library_path(graph, [X], tmp_path) == here
    others = {library_path(graph, [X.float()], tmp_path), library_path(graph, [X[:2]], tmp_path)}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0")
        others.add(library_path(graph, [X], tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(library, "_processor", lambda: "another")
        others.add(library_path(graph, [X], tmp_path))
    kept = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for by in (kept, 2 * kept):
        other = private.trace_operations(partial(plus, by), X)
        others.add(library_path(other, [X], tmp_path))
    assert len(others | {here}) == 7


def test_a_file_that_is_no_library_is_made_anew(built, tmp_path):
    right = ahead(tmp_path)[0]
    (file,) = tmp_path.iterdir()
    file.write_text("cut o")
    assert ahead(tmp_path)[0] == right
    assert file.read_text() == "whole"


def test_without_a_compiler_a_library_that_is_there_is_used(built, tmp_path, monkeypatch):
    right = ahead(tmp_path)[0]
    monkeypatch.setattr(compilation, "has_compiler", lambda: False)
    losses, svi = ahead(tmp_path)
    assert losses == right and "as the library" in svi.explain()
    losses, svi = ahead(tmp_path / "empty")
    assert_close(losses, right)
    assert "there is no C++ compiler" in svi.explain()


def test_a_library_that_cannot_be_built_leaves_nothing(tmp_path, monkeypatch):
    def build(graph, inputs, path):
        path.write_text("half")
        raise OSError("no room on the disk")

    monkeypatch.setattr(library, "build_library", build)
    right = twenty(start(SVI))
    losses, svi = ahead(tmp_path)
    assert_close(losses, right)
    assert "did not compile: OSError: no room on the disk" in svi.explain()
    assert list(tmp_path.iterdir()) == []


def test_by_default_libraries_are_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert library.folder_of(True) == tmp_path / "pyro_elbo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert library.folder_of(True) == Path.home() / ".cache" / "pyro_elbo"


def plus(by, x):
    return [x + by]


SCRIPT = """
import sys
import torch
torch.set_default_dtype(torch.float64)
from test_ahead_of_time import ahead
losses, svi = ahead(sys.argv[1])
print(svi.explain())
print(*losses)
"""


@needs_compiler
@pytest.mark.slow
def test_a_later_process_loads_the_library(tmp_path):
    right = twenty(start(SVI))
    expected = leaves()
    losses, svi = ahead(tmp_path)
    assert "as the library" in svi.explain()
    assert_close(losses, right)
    for name, value in leaves().items():
        assert_close(value, expected[name])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    here = Path(__file__).parent
    done = subprocess.run(
        command,
        env={"PYTHONPATH": f"{here}:{here.parent}", "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    said, numbers = done.stdout.strip().splitlines()[-2:]
    assert "as the library" in said
    assert_close([float(number) for number in numbers.split()], losses)
    assert len(list(tmp_path.glob("*.pt2"))) == 1
