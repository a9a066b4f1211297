"""``PYRO_TESTS=../pyro python -m pyro_suite [--all] [--losses=...] [what pytest takes]``.

PYRO_TESTS is a checkout of Pyro, whose tests are in no package. Without --losses there are two
runs: Pyro's own losses pass the tests that are listed as exceptions, then ours take their place.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = [
    "test_gradient.py",
    "test_valid_models.py",
    "test_enum.py",
    "test_autoguide.py",
    "autoguide",
    "test_inference.py",
]
QUICK = ["--stage=unit"]
ALL = ["--stage=unit", "--stage=integration"]


def main(arguments):
    """Run the suite; returns the exit status, 0 where there is no checkout."""
    checkout = os.environ.get("PYRO_TESTS")
    if not checkout:
        print("skipped: PYRO_TESTS names no checkout of Pyro (git clone, at the installed version)")
        return 0
    root = Path(checkout).resolve()
    if not (root / "tests" / "infer").is_dir():
        print(f"PYRO_TESTS={checkout} has no tests/infer; it must be a checkout of Pyro")
        return 2
    stages = ALL if "--all" in arguments else QUICK
    options = [*stages, *(argument for argument in arguments if argument != "--all")]
    if not any(option.startswith("--losses") for option in options):
        status = _run(root, ["--losses=pyro", *options])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return status
    return _run(root, options)


def _run(root, options):
    files = [str(root / "tests" / "infer" / file) for file in FILES]
    plugins = ["-p", "pyro_suite.plugin", "-p", "no:cacheprovider", "--import-mode=append"]
    settings = ["-c", str(root / "setup.cfg"), "--rootdir", str(root)]
    command = [sys.executable, "-m", "pytest", *plugins, *settings, *options, *files]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
