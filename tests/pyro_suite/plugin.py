"""A pytest plugin for Pyro's test suite: it puts these losses into the place of Pyro's."""

import importlib
import re
import tomllib
from collections import Counter
from pathlib import Path

import pyro.infer
import pytest

from pyro_elbo import TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO

HOMES = {
    "Trace_ELBO": "pyro.infer.trace_elbo",
    "TraceMeanField_ELBO": "pyro.infer.trace_mean_field_elbo",
    "TraceEnum_ELBO": "pyro.infer.traceenum_elbo",
}
LOSSES = {"gap": TraceGap_ELBO, "entropy": TraceEntropy_ELBO, "kl": TraceKL_ELBO}
BASELINE = "pyro"
CHOICES = {
    "default": {"Trace_ELBO": "gap", "TraceMeanField_ELBO": "kl", "TraceEnum_ELBO": "gap"},
    **{loss: dict.fromkeys(HOMES, loss) for loss in LOSSES},
    BASELINE: {},
}
EXCEPTIONS = Path(__file__).with_name("exceptions.toml")


class StandIn:
    """A loss that counts its instances."""

    made = 0

    def __init__(self, *args, **kwargs):
        StandIn.made += 1
        super().__init__(*args, **kwargs)


def substitute(losses):
    """Put a class of its own into each role, under the role's name.

    Pyro's tests compare the classes and print their names. Pyro's subclasses, such as
    ``JitTrace_ELBO``, keep their parents.
    """
    for role, loss in losses.items():
        stand_in = type(role, (StandIn, LOSSES[loss]), {})
        for module in ("pyro.infer", HOMES[role]):
            setattr(importlib.import_module(module), role, stand_in)


def pytest_addoption(parser):
    parser.addoption(
        "--losses",
        choices=list(CHOICES),
        default="default",
        help="default: TraceGap, TraceKL and TraceGap_ELBO for Trace, TraceMeanField and "
        "TraceEnum_ELBO; one loss for all three; or pyro: Pyro's own, which must pass the tests "
        "that are listed as exceptions",
    )


def pytest_configure(config):
    if Path(pyro.__file__).is_relative_to(config.rootpath):
        raise pytest.UsageError(f"Pyro comes from the checkout, {pyro.__file__}; install it")
    losses = config.getoption("losses")
    substitute(CHOICES[losses])
    config.pluginmanager.register(Exceptions(losses))


class Exceptions:
    """Holds the suite to exceptions.toml: each test there fails in its way, and no other fails."""

    def __init__(self, losses):
        self.baseline = losses == BASELINE
        self.entries = [
            entry
            for entry in tomllib.loads(EXCEPTIONS.read_text())["exceptions"]
            if self.baseline or losses in entry.get("losses", CHOICES)
        ]
        self.known = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        names = [item.nodeid for item in items]
        whole_files = not any("::" in argument for argument in config.args)
        for entry in self.entries:
            for pattern in entry["tests"]:
                matches = _matches(pattern, names)
                self.known.update(dict.fromkeys(matches, entry))
                if whole_files and not matches and _matches(f"{pattern.split('::')[0]}*", names):
                    raise pytest.UsageError(f"{EXCEPTIONS.name}: no test is named {pattern}")
        config.hook.pytest_deselected(items=[item for item in items if not self._is_kept(item)])
        items[:] = [item for item in items if self._is_kept(item)]

    def _is_kept(self, item):
        return not _is_of_another_loss(item) and (item.nodeid in self.known or not self.baseline)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        made, StandIn.made = StandIn.made, 0
        report = yield
        if made:
            report.user_properties.append(("stand-ins", made))
        entry = self.known.get(item.nodeid)
        if self.baseline or entry is None or report.when != "call" or report.skipped:
            return report
        if report.passed:
            report.outcome = "failed"
            report.longrepr = f"it passes: remove it from {EXCEPTIONS.name}"
        elif entry["error"] in str(call.excinfo.value):
            report.outcome, report.wasxfail = "skipped", entry["reason"]
        return report

    def pytest_terminal_summary(self, terminalreporter):
        used = Counter(
            category
            for category, reports in terminalreporter.stats.items()
            for report in reports
            if "stand-ins" in dict(getattr(report, "user_properties", ()))
        )
        counts = ", ".join(f"{count} {category}" for category, count in used.items())
        terminalreporter.write_line(f"tests that used a stand-in: {counts or 'none'}")


def _matches(pattern, names):
    regex = re.compile(re.escape(pattern).replace(r"\*", ".*"))
    return [name for name in names if regex.fullmatch(name)]


def _is_of_another_loss(item):
    """Whether a test is parametrised by losses, and none of them has one of the roles."""
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    losses = {p for p in params if isinstance(p, type) and issubclass(p, pyro.infer.ELBO)}
    return bool(losses) and losses.isdisjoint(getattr(pyro.infer, role) for role in HOMES)
