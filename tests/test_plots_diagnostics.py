"""Figures of the diagnostics: thresholds, dead units, rate and distortion."""

import matplotlib.colors
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.lines import AxLine

from pyro_elbo import plots

RATE, DISTORTION, BETAS = [3.0, 1.0, 2.0], [5.0, 8.0, 5.5], [0.5, 4.0, 1.0]


def groups(ax):
    return [points.get_offsets().tolist() for points in ax.collections]


def test_every_khat_is_drawn_once_on_its_side_of_the_thresholds():
    khat = [0.9, 0.5, np.nan, 0.7, -0.2, 0.51, 0.71]
    ax = plots.khat_points(khat)
    assert groups(ax) == [[[1, 0.5], [4, -0.2]], [[3, 0.7], [5, 0.51]], [[0, 0.9], [6, 0.71]]]
    assert [line.get_ydata()[0] for line in ax.lines] == [0.5, 0.7]
    assert len({line.get_linestyle() for line in ax.lines}) == 2
    assert legend(ax)[-1] == r"$\hat k$ > 0.7:  33.3 %  (2 of 6)"
    assert [text.get_text() for text in ax.texts] == ["nan, left out: 1 of 7"]


def test_the_groups_of_khat_differ_in_shape_as_in_colour():
    ax = plots.khat_points([0.1, 0.6, 0.8])
    outlines = {points.get_paths()[0].vertices.tobytes() for points in ax.collections}
    colours = {tuple(points.get_edgecolor()[0]) for points in ax.collections}
    assert len(outlines) == len(colours) == 3


def test_a_khat_that_nobody_has_leaves_thresholds_and_a_note():
    ax = plots.khat_points(torch.full((5,), torch.nan))
    assert groups(ax) == [[], [], []]
    assert ax.texts[0].get_text() == "nan, left out: 5 of 5"
    assert legend(ax)[-1].endswith("0.0 %  (0 of 0)")
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert left <= 0 and right >= 4 and low <= 0 and high >= 1


def test_no_note_where_nothing_is_left_out():
    assert not plots.khat_points([0.1, 0.2]).texts


def test_dead_units_have_a_cross_above_their_bar_and_names_follow_their_units():
    kl, active = [0.5, 2.0, 0.0, 1.0], [False, True, False, True]
    ax = plots.unit_kl(kl, active=active, units=["a", "b", "c", "d"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["b", "d", "a", "c"]
    assert [(text.get_text(), text.xy) for text in ax.texts] == [("×", (3, 0.5)), ("×", (4, 0.0))]
    assert ax.get_xlabel() == "latent unit, sorted (×: dead)"


def test_no_cross_where_all_units_are_active():
    ax = plots.unit_kl([1.0, 2.0])
    assert not ax.texts and ax.get_xlabel() == "latent unit, sorted"


def test_long_names_of_units_stand_upright():
    names = [f"z[{i}]" for i in range(40)]
    labels = plots.unit_kl(np.arange(40.0), units=names).get_xticklabels()
    assert {label.get_rotation() for label in labels} == {90.0}


def test_rate_and_distortion_are_joined_by_rate_with_each_weight_at_its_point():
    ax = plots.rate_distortion_curve(RATE, DISTORTION, BETAS, unit="nats per image")
    assert ax.lines[0].get_xydata().tolist() == [[1.0, 8.0], [2.0, 5.5], [3.0, 5.0]]
    assert ax.lines[0].get_marker() == "o"
    notes = {text.xy: text.get_text() for text in ax.texts if text.get_text()[0] == "$"}
    expected = {(3.0, 5.0): "0.5", (1.0, 8.0): "4", (2.0, 5.5): "1"}
    assert notes == {point: rf"$\beta$ = {beta}" for point, beta in expected.items()}
    assert "nats per image" in ax.get_xlabel() and "nats per image" in ax.get_ylabel()


def test_along_a_dotted_line_the_elbo_is_what_stands_on_it():
    ax = plots.rate_distortion_curve(RATE, DISTORTION)
    lines = [artist for artist in ax.get_children() if isinstance(artist, AxLine)]
    texts = [text for text in ax.texts if text.get_text().startswith("ELBO")]
    assert len(lines) == len(texts) >= 3
    for line, text in zip(lines, texts, strict=True):
        rate, distortion = line.get_xy1()
        level = float(text.get_text().removeprefix("ELBO ").replace("−", "-"))
        assert line.get_slope() == -1.0
        assert -(rate + distortion) == pytest.approx(level, rel=1e-12)
        assert text.get_position() == (rate, distortion)
        assert ax.get_xlim()[0] < rate < ax.get_xlim()[1]
        assert ax.get_ylim()[0] < distortion < ax.get_ylim()[1]
        assert line.get_linestyle() == ":"
        across, up = np.diff(ax.transData.transform([(0.0, 1.0), (1.0, 0.0)]), axis=0)[0]
        assert text.get_rotation() == pytest.approx(np.degrees(np.arctan2(up, across)) % 360)


def test_the_lines_of_the_elbo_leave_the_view_to_the_points():
    ax = plots.rate_distortion_curve(RATE, DISTORTION)
    ax.figure.canvas.draw()
    assert ax.dataLim.extents.tolist() == [1.0, 5.0, 3.0, 8.0]
    plots.rate_distortion_curve([9.0], [1.0], ax=ax)
    assert ax.get_xlim()[1] > 9.0 and ax.get_ylim()[0] < 1.0


def test_the_elbo_keeps_its_digits():
    ax = plots.rate_distortion_curve([0.0, 3.0], [1234567.0, 1234562.0])
    assert "ELBO −1234566" in [text.get_text() for text in ax.texts]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.khat_points([]), "khat must be a vector with a value at least"),
        (lambda: plots.khat_points([[0.5]]), r"khat must be a vector.*got shape \(1, 1\)"),
        (lambda: plots.khat_points([0.1, np.inf]), "khat has 1 value that is infinite, .* index 1"),
        (lambda: plots.unit_kl([]), "must be vectors of one length"),
        (lambda: plots.unit_kl([1.0, np.nan]), "kl has 1 value that is not finite"),
        (lambda: plots.unit_kl([1.0], units=["a", "b"]), "2 names of units for 1 units"),
        (lambda: plots.rate_distortion_curve([], []), "rate must be a vector with a value"),
        (lambda: plots.rate_distortion_curve([1.0], [1.0, 2.0]), "rate and distortion must have"),
        (lambda: plots.rate_distortion_curve(RATE, DISTORTION, [1.0]), "got 3, 3 and 1"),
        (lambda: plots.rate_distortion_curve([np.nan], [1.0]), "rate has 1 value that is not"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_a_figure_is_made(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert pyplot.get_fignums() == []


def test_the_kl_is_hatched_wherever_it_lies_beside_the_reconstruction():
    reconstruction, kl = plots.bound_bars([-2.0], [1.0], labels=["a"]).containers
    assert kl[0].get_hatch() and not reconstruction[0].get_hatch()
    assert kl[0].get_facecolor() == matplotlib.colors.to_rgba(plots.TERM_COLOURS["kl"])


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]
