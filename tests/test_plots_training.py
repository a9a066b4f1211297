"""Figures over training steps: what is drawn is what was given, and it adds up."""

import matplotlib.colors
import numpy as np
import pytest
import torch
from matplotlib import pyplot

from pyro_elbo import History, plots, schedules

STEPS = [0, 10, 30]
FIT, KL, BETA = [-9.0, -6.0, 2.5], [0.5, 1.0, 1.5], [4.0, 2.0, 0.5]
ELBO, EVIDENCE, ERROR = [-5.0, -3.0, -2.5], [-2.25, -2.0, -2.0], [0.25, 0.125, 0.5]


def edges(area, steps):
    """The two values at each step between which an area lies, lower first."""
    vertices = area.get_paths()[0].vertices
    at = [np.unique(vertices[vertices[:, 0] == step, 1]) for step in steps]
    return [(values.min(), values.max()) for values in at]


def test_stacked_areas_lead_from_zero_to_the_elbo():
    ax = plots.stacked_terms(STEPS, FIT, KL, unit="nats per image")
    fit, kl = ax.collections
    assert edges(fit, STEPS) == [(-9.0, 0.0), (-6.0, 0.0), (0.0, 2.5)]
    assert edges(kl, STEPS) == [(-9.5, -9.0), (-7.0, -6.0), (1.0, 2.5)]
    assert ax.lines[0].get_xydata().tolist() == [[0, -9.5], [10, -7.0], [30, 1.0]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "nats per image")
    assert len(ax.figure.axes) == 1


def test_stacked_areas_have_the_terms_colours_and_only_the_kl_is_hatched():
    ax = plots.stacked_terms(STEPS, FIT, KL)
    for area, term in zip(ax.collections, ("reconstruction", "kl"), strict=True):
        assert tuple(area.get_facecolor()[0]) == to_rgba(term)
        assert area.get_label() == plots.TERM_LABELS[term]
        assert bool(area.get_hatch()) == (term == "kl")
    assert ax.lines[0].get_color() == plots.TERM_COLOURS["elbo"]


def test_the_weight_is_on_its_own_axis_and_in_the_legend():
    ax = plots.stacked_terms(STEPS, FIT, KL, BETA)
    (twin,) = set(ax.figure.axes) - {ax}
    assert twin.lines[0].get_ydata().tolist() == BETA
    assert twin.get_ylim()[0] == 0.0 and twin.get_ylim()[1] > 4.0
    assert legend(ax)[-1] == plots.TERM_LABELS["beta"]
    assert twin.lines[0].get_linestyle() == "--" != ax.lines[0].get_linestyle()


def test_the_gap_lies_between_elbo_and_evidence():
    ax = plots.gap_curve(STEPS, ELBO, EVIDENCE, ERROR)
    gap, _, band = ax.collections
    assert edges(gap, STEPS) == list(zip(ELBO, EVIDENCE, strict=True))
    assert edges(band, STEPS) == [(-2.75, -1.75), (-2.25, -1.75), (-3.0, -1.0)]
    drawn = {line.get_label(): line for line in ax.lines}
    assert drawn["ELBO"].get_ydata().tolist() == ELBO
    assert drawn["log p(x) ± 2 std. errors"].get_ydata().tolist() == EVIDENCE
    assert drawn["ELBO"].get_marker() != drawn["log p(x) ± 2 std. errors"].get_marker()


@pytest.mark.parametrize(("bound", "sign"), [("lower", "≥"), ("exact", "="), ("upper", "≤")])
def test_the_legend_says_what_the_last_gap_is_worth(bound, sign):
    ax = plots.gap_curve(STEPS, ELBO, EVIDENCE, bound=bound)
    assert legend(ax)[0] == f"{plots.TERM_LABELS['gap']} {sign} 0.500 at the end"
    assert len(ax.collections) == 1 and "log p(x)" in legend(ax)


def test_the_gap_takes_what_track_evidence_has():
    ax = plots.gap_curve([5], torch.tensor([-3.0]), torch.tensor([-2.0]), torch.tensor([0.1]))
    assert ax.lines[-1].get_xydata().tolist() == [[5.0, -3.0]]
    assert ax.lines[-1].get_marker() not in (None, "None")


def test_a_schedule_is_drawn_at_every_step_with_one_dotted():
    seen = []

    def schedule(step):
        seen.append(step)
        return torch.tensor(0.25 * step)

    ax = plots.schedule_curve(schedule, 3)
    assert seen == [0, 1, 2, 3]
    assert ax.lines[0].get_xydata().tolist() == [[0, 0], [1, 0.25], [2, 0.5], [3, 0.75]]
    assert set(ax.lines[1].get_ydata()) == {1.0} and ax.lines[1].get_linestyle() == ":"


@pytest.mark.parametrize("schedule", [schedules.Cyclical(0, 1, period=7), lambda step: 2])
def test_any_callable_is_a_schedule(schedule):
    ax = plots.schedule_curve(schedule, 20)
    assert ax.lines[0].get_ydata().tolist() == [schedule(step) for step in range(21)]


def test_curves_of_terms_differ_in_their_markers_too():
    ax = plots.term_curves(range(100), {name: np.arange(100) for name in plots.TERM_COLOURS})
    assert [line.get_marker() for line in ax.lines] == list(plots.TERM_MARKERS.values())
    assert len(set(plots.TERM_MARKERS.values())) == len(plots.TERM_COLOURS)
    assert plots.TERM_MARKERS.keys() == plots.TERM_COLOURS.keys()
    starts = [line.get_markevery().start for line in ax.lines]
    assert len(set(starts)) == len(starts)
    assert all(
        start < line.get_markevery().step for start, line in zip(starts, ax.lines, strict=True)
    )


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.stacked_terms(STEPS, FIT, KL[:2]), "must have one length, got 3, 3 and 2"),
        (lambda: plots.stacked_terms(STEPS, FIT, KL, [1.0]), "steps, reconstruction, kl and beta"),
        (lambda: plots.stacked_terms([], [], []), "steps must be a vector with a value at least"),
        (lambda: plots.stacked_terms([0], [1.0], [1.0]), "one step makes no area; bound_bars"),
        (lambda: plots.stacked_terms([0, 2, 1], FIT, KL), "steps must rise, but 1 follows 2; sort"),
        (lambda: plots.stacked_terms([0, 0, 1], FIT, KL), "steps must rise, but 0 follows 0"),
        (
            lambda: plots.stacked_terms(STEPS, [np.inf, 0.0, np.nan], KL),
            "reconstruction has 2 values that are not finite, the first at index 0; leave them",
        ),
        (lambda: plots.gap_curve([STEPS], [ELBO], [EVIDENCE]), r"steps must be a vector.*\(1, 3\)"),
        (lambda: plots.gap_curve(STEPS, ELBO, [np.nan] * 3), "log_evidence has 3 values that are"),
        (
            lambda: plots.gap_curve(STEPS, ELBO, EVIDENCE, [0.1]),
            "must have one length, got 3, 3, 3",
        ),
        (lambda: plots.gap_curve(STEPS, ELBO, EVIDENCE, [1.0, -1.0, 0.0]), "has no sign"),
        (lambda: plots.gap_curve([2, 1, 3], ELBO, EVIDENCE), "steps must rise"),
        (lambda: plots.gap_curve(STEPS, ELBO, EVIDENCE, bound="tight"), "not 'tight'"),
        (lambda: plots.schedule_curve(lambda step: 1.0, 0), "num_steps must be >= 1, got 0"),
        (
            lambda: plots.schedule_curve(lambda step: np.nan if step == 2 else 1.0, 4),
            "schedule has 1 value that is not finite, the first at index 2; leave it out",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused_before_a_figure_is_made(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.5, 10), "schedule must be a callable of the step, got 0.5"), ((abs, 2.5), "integer")],
)
def test_what_is_no_schedule_or_no_number_of_steps_is_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        plots.schedule_curve(*arguments)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def to_rgba(term):
    return matplotlib.colors.to_rgba(plots.TERM_COLOURS[term])


def test_a_history_is_drawn_as_means_of_windows():
    steps = np.arange(1, 1001)
    run = History(
        {
            "step": steps,
            "objective": -np.ones(1000),
            "elbo": -np.tile([1.0, 3.0], 500),
            "kl": np.tile([0.0, 1.0], 500),
            "beta": np.minimum(steps / 500, 1.0),
        }
    )
    ax = plots.history(run, num_points=100)
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["ELBO"].get_ydata().tolist() == [-2.0] * 100
    assert lines["ELBO"].get_xdata()[-1] == 1000
    assert set(lines) == {"ELBO", plots.TERM_LABELS["objective"], plots.TERM_LABELS["kl"]}
    (twin,) = [other for other in ax.figure.axes if other is not ax]
    assert twin.lines[0].get_ydata()[-1] == 1.0


def test_a_history_at_weight_1_shows_no_weight():
    ones = np.ones(3)
    run = History({"step": [1, 2, 3], "objective": -ones, "elbo": -ones, "beta": ones})
    ax = plots.history(run)
    assert [line.get_label() for line in ax.lines] == ["ELBO"] and len(ax.figure.axes) == 1
    run = History({"step": [1, 2, 3], "objective": -ones, "beta": ones * np.nan})
    assert [line.get_label() for line in plots.history(run).lines] == [
        plots.TERM_LABELS["objective"]
    ]


def test_a_history_per_datum():
    run = History({"step": [1, 2], "elbo": [-6.0, -1.0], "num_data": [3, 1], "beta": [1, 1]})
    ax = plots.history(run, per_datum=True)
    assert ax.lines[0].get_ydata().tolist() == [-2.0, -1.0] and ax.get_ylabel() == "nats per datum"
    with pytest.raises(ValueError, match="number of data is not known"):
        plots.history(History({"step": [1], "elbo": [0.0]}), per_datum=True)


def test_a_history_that_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="no steps"):
        plots.history(History())
    run = History({"step": [1], "elbo": [0.0]})
    with pytest.raises(ValueError, match="num_points"):
        plots.history(run, num_points=0)
    with pytest.raises(KeyError, match="no column 'loss'"):
        plots.history(run, terms=["loss"])
