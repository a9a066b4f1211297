"""Imports go one way, and each heavy library has one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyro_elbo"

# The concepts, each with those it may import besides itself and errors.
MAY_IMPORT = {
    "errors": [],
    "schedules": [],
    "terms": [],
    "weighting": [],
    "elbo": ["schedules", "terms", "weighting"],
    "capture": ["terms", "weighting", "elbo"],
    "steppers": ["terms", "elbo", "capture"],
    "interop": ["elbo", "terms"],
    "evidence": ["terms", "elbo", "interop"],
    "diagnostics": ["elbo", "weighting", "evidence", "terms", "interop"],
    "training": [
        *["schedules", "terms", "weighting", "elbo", "steppers"],
        *["interop", "evidence", "diagnostics"],
    ],
    "plots": ["terms", "evidence", "diagnostics", "training"],
    "reference": [],
}
# Files beside the concept they are part of.
PART_OF = {
    **{"importance": "terms", "site_terms": "terms", "tables": "terms", "views": "terms"},
    "summary": "terms",
    "decisions": "weighting",
}
# What a person runs or imports sits above all concepts.
TOP = ["__init__", "__main__", "demo"]
# Libraries, each with the only places that may import it.
ONLY_IN = {
    "arviz": ["interop"],
    "arviz_stats": ["interop"],
    "xarray": ["interop"],
    "lightning": ["training"],
    "matplotlib": ["plots", "demo"],
    "sklearn": ["demo"],
    "tqdm": ["evidence", "training", "diagnostics", "demo"],
}
# Concepts that import nothing else from outside the standard library.
ONLY_LIBRARIES = {
    "errors": [],
    "schedules": [],
    "terms": ["torch"],
    "weighting": ["torch", "pyro"],
}


def concept_of(module):
    """The concept of a dotted module: pyro_elbo.elbo.kl is of elbo."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "__init__"
    return PART_OF.get(name, name)


def modules():
    """Every module of the package, dotted, with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts), path


def imported(module, source):
    """The dotted name of everything a module imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def faults(module, source):
    """The imports of a module that the tables above do not allow."""
    concept = concept_of(module)
    if concept not in MAY_IMPORT and concept not in TOP:
        return [f"{module}: give {concept!r} a place in MAY_IMPORT or PART_OF"]
    names = sorted(imported(module, source))
    ours = [name for name in names if name.split(".")[0] == "pyro_elbo"]
    others = [name for name in names if name.split(".")[0] not in ("pyro_elbo", "__future__")]
    forbidden = [name for name in ours if not may_import(concept, concept_of(name))]
    forbidden += [name for name in others if not may_use(concept, name.split(".")[0])]
    return [f"{module} must not import {name}" for name in forbidden]


def may_import(concept, other):
    return concept in TOP or other in (concept, "errors", *MAY_IMPORT[concept])


def may_use(concept, library):
    if library in ONLY_IN:
        return concept in ONLY_IN[library] or (concept == "__main__" and library != "arviz")
    if concept in ONLY_LIBRARIES:
        return library in sys.stdlib_module_names or library in ONLY_LIBRARIES[concept]
    return True


@pytest.mark.parametrize(
    ("module", "path"), [pytest.param(module, path, id=module) for module, path in modules()]
)
def test_a_module_imports_only_what_its_concept_may(module, path):
    assert faults(module, path.read_text(encoding="utf-8")) == []


def test_the_table_has_no_way_back():
    above = list(MAY_IMPORT)
    for concept, allowed in MAY_IMPORT.items():
        assert all(above.index(other) < above.index(concept) for other in allowed), concept


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pyro_elbo.schedules.ramps", "import torch"),
        ("pyro_elbo.terms", "from .elbo import plan"),
        ("pyro_elbo.terms", "def f():\n    from . import weighting"),
        ("pyro_elbo.elbo.kl", "from ..steppers.em import VariationalEM"),
        ("pyro_elbo.elbo.kl", "from pyro_elbo import fit"),
        ("pyro_elbo.elbo.__init__", "from ..training import fit"),
        ("pyro_elbo.evidence.exact", "import arviz.stats"),
        ("pyro_elbo.plots.bound", "from ..elbo import TraceKL_ELBO"),
        ("pyro_elbo.reference.mixture", "import pyro_elbo.elbo.base"),
        ("pyro_elbo.training.fit", "import matplotlib.pyplot as plt"),
        ("pyro_elbo.reference.digits", "from sklearn import datasets"),
        ("pyro_elbo.__init__", "import matplotlib"),
        ("pyro_elbo.helpers", "import math"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert len(faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pyro_elbo.__init__", "from .elbo import TraceKL_ELBO\nfrom . import plots"),
        ("pyro_elbo.elbo.__init__", "from .kl import TraceKL_ELBO"),
        ("pyro_elbo.elbo.kl", "from ..errors import UnsupportedSiteError\nimport pyro"),
        ("pyro_elbo.interop", "import arviz as az\nfrom .terms import ELBOTerms"),
        ("pyro_elbo.demo.figures", "import matplotlib\nfrom .. import plots, TraceKL_ELBO"),
        ("pyro_elbo.terms", "from .site_terms import SiteTerms\nfrom torch import Tensor"),
    ],
)
def test_an_allowed_import_is_not(module, source):
    assert faults(module, source) == []


def test_importing_the_package_loads_none_of_the_heavy_libraries():
    """Pyro loads tqdm itself, so what counts is what comes on top of Pyro."""
    program = (
        "import sys, pyro, pyro.infer; before = set(sys.modules); import pyro_elbo.training; "
        f"print(*sorted({set(ONLY_IN)} & (set(sys.modules) - before)))"
    )
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, check=True, cwd=PACKAGE.parent, stdout=subprocess.PIPE)
    assert loaded.stdout.decode().split() == []
