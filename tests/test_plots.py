"""Figures as data: what is drawn is what was given."""

import matplotlib.colors
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from numpy import inf, nan

from pyro_elbo import plots

STEPS = [1, 2, 3]
CURVES = {"elbo": [-3.0, -2.0, -1.5], "objective": [-4.0, -3.0, -1.5], "kl": [0.0, 0.5, 1.0]}
DRAWN = {
    "term_curves": lambda **keywords: plots.term_curves(STEPS, CURVES, **keywords),
    "beta_curve": lambda **keywords: plots.beta_curve(STEPS, [4.0, 2.5, 1.0], **keywords),
    "bound_bars": lambda **keywords: plots.bound_bars([-2.0], [1.0], labels=["a"], **keywords),
    "unit_kl": lambda **keywords: plots.unit_kl([1.0, 2.0], **keywords),
    "image_grid": lambda **keywords: plots.image_grid(np.zeros((1, 1, 2, 2)), **keywords),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_plot_returns_the_axes_that_it_drew_on(draw):
    _, axes = pyplot.subplots(1, 2)
    assert draw(ax=axes[0]) is axes[0]
    assert not axes[1].has_data()
    new = draw()
    assert isinstance(new, Axes)
    assert new is not draw() and new.figure is not axes[0].figure


def test_every_term_has_a_colour_of_its_own_and_a_label():
    colours = {matplotlib.colors.to_hex(colour) for colour in plots.TERM_COLOURS.values()}
    assert len(colours) == len(plots.TERM_COLOURS)
    assert plots.TERM_LABELS.keys() == plots.TERM_COLOURS.keys()
    assert len(set(plots.TERM_LABELS.values())) == len(plots.TERM_LABELS)


def test_term_curves_draws_each_term_in_its_colour():
    ax = plots.term_curves(STEPS, CURVES, unit="nats per image")
    assert ax.get_xlabel() == "step" and ax.get_ylabel() == "nats per image"
    for line, (name, values) in zip(ax.lines, CURVES.items(), strict=True):
        assert line.get_xdata().tolist() == STEPS
        assert line.get_ydata().tolist() == values
        assert line.get_color() == plots.TERM_COLOURS[name]
        assert line.get_label() == plots.TERM_LABELS[name]
        assert line.get_linestyle() == ("--" if name == "objective" else "-")


def test_beta_curve_reaches_down_to_zero():
    ax = plots.beta_curve(STEPS, [4.0, 2.5, 1.0])
    assert ax.lines[0].get_ydata().tolist() == [4.0, 2.5, 1.0]
    assert ax.get_ylim()[0] == 0.0 and ax.get_ylim()[1] > 4.0


def test_beta_curves_on_shared_axes_show_the_largest():
    _, axes = pyplot.subplots(2, sharey=True)
    plots.beta_curve(STEPS, [1.0, 1.0, 1.0], ax=axes[0])
    plots.beta_curve(STEPS, [4.0, 2.5, 1.0], ax=axes[1])
    assert axes[0].get_ylim()[0] == 0.0 and axes[0].get_ylim()[1] > 4.0


def test_bound_bars_lead_from_zero_to_the_elbo():
    reconstruction, kl = [-18.0, -27.5, -20.0], [5.0, 0.0, 2.25]
    ax = plots.bound_bars(reconstruction, kl, labels=["a", "b", "c"])
    likelihood, divergence = ax.containers
    assert [bar.get_x() for bar in likelihood] == [0.0, 0.0, 0.0]
    assert [bar.get_width() for bar in likelihood] == reconstruction
    assert [bar.get_x() for bar in divergence] == reconstruction
    assert [bar.get_x() + bar.get_width() for bar in divergence] == [-23.0, -27.5, -22.25]
    assert likelihood[0].get_facecolor() == to_rgba("reconstruction")
    assert divergence[0].get_facecolor() == to_rgba("kl")
    assert [text.get_text() for text in ax.texts] == ["−23.00", "−27.50", "−22.25"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert ax.yaxis_inverted()


@pytest.mark.parametrize(
    ("reconstruction", "kl"), [(3.0, 5.0), (20.0, 5.0), (-18.0, 5.0), (-18.0, -0.5), (3.0, 0.0)]
)
def test_no_bar_hides_another(reconstruction, kl):
    both = plots.bound_bars([reconstruction], [kl], labels=["a"]).containers
    first, second = (bars[0].get_bbox() for bars in both)
    across = min(first.xmax, second.xmax) - max(first.xmin, second.xmin)
    up = min(first.ymax, second.ymax) - max(first.ymin, second.ymin)
    assert across <= 1e-9 or up <= 1e-9
    assert min(first.ymin, second.ymin) == pytest.approx(-0.4)
    assert max(first.ymax, second.ymax) == pytest.approx(0.4)


@pytest.mark.parametrize("reconstruction", [[-18.0, -27.5], [18.0, 27.5], [-18.0, 20.0]])
def test_the_values_of_bound_bars_lie_inside_the_axes(reconstruction):
    ax = plots.bound_bars(reconstruction, [5.0, 0.0], labels=["a", "b"])
    ax.figure.canvas.draw()
    assert len(ax.figure.legends[0].get_texts()) == 2
    inside = ax.get_window_extent()
    for text in ax.texts:
        extent = text.get_window_extent()
        assert inside.x0 < extent.x0 and extent.x1 < inside.x1


def test_unit_kl_sorts_the_units_and_draws_the_inactive_hollow():
    ax = plots.unit_kl([0.1, 2.0, 0.0, 1.0], active=[False, True, False, True])
    assert [bar.get_height() for bar in ax.patches] == [2.0, 1.0, 0.1, 0.0]
    assert [bar.get_facecolor()[3] for bar in ax.patches] == [1.0, 1.0, 0.0, 0.0]
    assert {bar.get_edgecolor() for bar in ax.patches} == {to_rgba("kl")}
    assert all(bar.get_facecolor()[3] == 1.0 for bar in plots.unit_kl([0.0, 1.0]).patches)


def test_image_grid_lays_rows_and_columns_out_with_a_gap():
    images = np.random.default_rng(0).random((2, 3, 4, 5))
    ax = plots.image_grid(images, row_labels=["data", "model"])
    mosaic = ax.images[0].get_array()
    assert mosaic.shape == (2 * 5 - 1, 3 * 6 - 1)
    for row in range(2):
        for column in range(3):
            tile = mosaic[row * 5 : row * 5 + 4, column * 6 : column * 6 + 5]
            np.testing.assert_array_equal(tile.data, images[row, column])
    assert mosaic.mask.sum() == mosaic.size - images.size
    assert ax.images[0].get_clim() == (0.0, 1.0)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["data", "model"]
    assert ax.get_yticks().tolist() == [1.5, 6.5]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.term_curves(STEPS, {"loss": STEPS}), "'loss' is no term; the terms are"),
        (lambda: plots.term_curves(STEPS, {"kl": [1.0]}), r"'kl' has shape \(1,\), steps has"),
        (lambda: plots.beta_curve(STEPS, [1.0]), r"'beta' has shape \(1,\), steps has"),
        (lambda: plots.bound_bars([1.0], [1.0], labels=[]), "must have the same length"),
        (lambda: plots.bound_bars([1.0, 1], [1.0, nan], labels=["a", "b"]), "'b' is not finite"),
        (lambda: plots.bound_bars([inf], [1.0], labels=["a"]), "'a' is not finite"),
        (lambda: plots.bound_bars([1.0], [1.0, 2.0], labels=["a"]), "must have the same length"),
        (lambda: plots.unit_kl([[1.0]]), "must be vectors of one length"),
        (lambda: plots.unit_kl([1.0], active=[True, False]), "must be vectors of one length"),
        (lambda: plots.image_grid(np.zeros((2, 3, 4))), r"\[rows, columns, height, width\]"),
        (
            lambda: plots.image_grid(np.zeros((2, 3, 4, 4)), row_labels=["a"]),
            "1 row labels for 2 rows",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused_before_a_figure_is_made(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert pyplot.get_fignums() == []


def to_rgba(term):
    return matplotlib.colors.to_rgba(plots.TERM_COLOURS[term])
