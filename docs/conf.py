"""The documentation's settings: `make docs` builds it into docs/_build/html."""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import pyro_elbo  # noqa: E402

project = "pyro_elbo"
author = "pyro_elbo developers"
copyright = author
version = release = pyro_elbo.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # formulas need no other server
]
exclude_patterns = ["_build"]
nitpicky = True

# Pages are MyST; notebooks are shown as they were committed, and never run here.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show an answer"
nb_code_prompt_hide = "Hide the answer"

# The docstrings: Google's sections, and one of our own.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Law"]
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"pyro_elbo {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# What belongs to other packages is named, and not linked: a build asks no other server for it. Nor
# are the parts inside the package that a signature names, and no page is about.
OTHERS = (
    "abc|arviz|collections|contextlib|lightning|matplotlib|np|numpy|os|pandas|pathlib|pyro|torch"
    "|typing|xarray"
)
INSIDE = (
    r"elbo\.(cost|costing|marginals|recording|step)\.|evidence\.(annealing|weigher)\.|views\.Totals"
    r"|site_terms\.Atom|training\.(feed\.|run\.CallableCallback)"
)
nitpick_ignore_regex = [
    (r"py:.*", rf"({OTHERS})\..*"),
    (r"py:.*", rf"pyro_elbo\.({INSIDE}).*"),
    (r"py:class", "Tensor"),
]


def copy_notebooks() -> None:
    """Bring the notebooks into the sources, their answers folded away."""
    target = HERE / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["metadata"].get("jupyter", {}).get("source_hidden"):
                cell["metadata"]["tags"] = ["hide-cell"]
        (target / path.name).write_text(json.dumps(notebook), encoding="utf-8")


def setup(_: object) -> None:
    """What Sphinx calls before it reads the sources."""
    copy_notebooks()
