"""Figures of latents: what a unit draws, and the guide over the posterior."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.contour import ContourSet

from pyro_elbo import plots
from pyro_elbo.plots.density import Density

COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])


def decode(z):
    """A pixel for each unit and a row that is the same for all, three wide."""
    pixels = torch.cat([z.sigmoid(), torch.full_like(z[:, :1], 0.25)], dim=1)
    return pixels[:, :, None].expand(-1, -1, 3)


def tile(ax, row, column, height=4, width=3):
    top, left = row * (height + 1), column * (width + 1)
    return ax.images[0].get_array()[top : top + height, left : left + width].data[:, 0]


def test_each_row_moves_one_unit_and_leaves_the_others_at_the_base():
    base, values = torch.tensor([0.5, -1.0, 2.0]), [-2.0, 0.0, 1.0, 3.0]
    ax = plots.latent_traversal(decode, 3, base=base, values=values, units=[2, 0])
    for row, unit in enumerate([2, 0]):
        for column, value in enumerate(values):
            code = base.clone()
            code[unit] = value
            expected = decode(code[None])[0, :, 0].numpy()
            np.testing.assert_array_equal(tile(ax, row, column), expected)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["z[2]", "z[0]"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["−2", "0", "1", "3"]
    assert ax.get_xticks().tolist() == [1.0, 5.0, 9.0, 13.0]


def test_the_origin_is_the_base_and_all_units_move_by_default():
    ax = plots.latent_traversal(decode, 3)
    assert ax.images[0].get_array().shape == (3 * 5 - 1, 7 * 4 - 1)
    np.testing.assert_array_equal(tile(ax, 1, 3), [0.5, 0.5, 0.5, 0.25])
    assert tile(ax, 1, 6)[1] == torch.tensor(3.0).sigmoid()


def test_codes_have_the_type_of_the_base_which_stays_as_it_was():
    base, seen = torch.zeros(2, dtype=torch.float32), []
    weight = torch.nn.Parameter(torch.ones((), dtype=torch.float32))

    def decode_and_note(z):
        seen.append(z)
        return decode(weight * z)

    plots.latent_traversal(decode_and_note, 2, base=base, values=[1.0])
    (codes,) = seen
    assert codes.dtype == torch.float32 and codes.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert base.tolist() == [0.0, 0.0] and weight.grad is None


def assert_same(drawn, expected):
    """Equal, up to the rounding of sums over a grid of 80 cells."""
    np.testing.assert_allclose(drawn, expected, rtol=80 * np.finfo(float).eps)


def normals(seed, size, covariance=COVARIANCE):
    return np.random.default_rng(seed).multivariate_normal([1.0, -2.0], covariance, size)


def contours(ax):
    return [artist for artist in ax.collections if isinstance(artist, ContourSet)]


@pytest.mark.parametrize("of_guide", [True, False])
def test_the_regions_hold_half_and_nine_tenths_of_the_samples(of_guide):
    guide, reference = normals(0, 2000, np.diag([0.4, 0.6])), normals(1, 3000)
    ax = plots.guide_against_posterior(guide, reference)
    areas, lines = contours(ax)
    drawn, samples = (lines, guide) if of_guide else (areas, reference)
    assert drawn.filled is not of_guide
    density = Density.of(samples, [ax.get_xlim(), ax.get_ylim()])
    assert_same(drawn.levels[:2], density.levels((0.5, 0.9)))
    for level, share in zip(drawn.levels, (0.9, 0.5), strict=False):
        (ring,) = pyplot.figure().subplots().contour(*density.grid, levels=[level]).get_paths()
        inside = ring.contains_points(samples).mean()
        assert abs(inside - share) < 2 * np.sqrt(share * (1 - share) / len(samples))


def test_the_density_is_that_of_the_samples_widened_by_the_kernel():
    """The variance of a smoothed histogram: of the samples, the kernel and the cells."""
    samples = normals(0, 5000)
    right, up, density = Density.of(samples, [(-9.0, 11.0), (-12.0, 8.0)]).grid
    for values, marginal, column in ((right, density.sum(0), 0), (up, density.sum(1), 1)):
        mass = marginal / marginal.sum()
        mean, spread = samples[:, column].mean(), samples[:, column].std()
        width = min(spread, np.diff(np.quantile(samples[:, column], (0.25, 0.75)))[0] / 1.349)
        cell = values[1] - values[0]
        assert abs(values @ mass - mean) < cell / 2
        variance = (values - values @ mass) ** 2 @ mass
        assert variance == pytest.approx(spread**2 + width**2 * 5000 ** (-1 / 3), abs=cell**2)


def test_a_heavy_tail_does_not_widen_the_kernel():
    samples = normals(0, 5000)
    tailed = np.concatenate([samples, np.tile([[500.0, 500.0], [-500.0, -500.0]], (100, 1))])
    limits = [(-9.0, 11.0), (-12.0, 8.0)]
    peak, tailed_peak = (Density.of(one, limits).grid[2].max() for one in (samples, tailed))
    assert tailed_peak > 0.9 * peak


def test_samples_beyond_the_limits_count_as_outside_of_every_region():
    samples = np.array([[0.5, 0.5]] * 6 + [[5.0, 0.5]] * 2 + [[0.5, -5.0]] * 2)
    density = Density.of(samples, [(0.0, 1.0), (0.0, 1.0)])
    assert (density.at_samples == 0).sum() == 4
    assert (density.at_samples > 0).sum() == 6


def test_the_chosen_dims_are_drawn_in_their_order():
    guide, reference = np.random.default_rng(0).normal(size=(2, 400, 3)) * [1.0, 5.0, 25.0]
    ax = plots.guide_against_posterior(guide, reference, dims=(2, 0), names=["a", "b", "c"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("c", "a")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), guide[:300][:, [2, 0]])


def test_the_marginals_are_at_the_sides_and_share_the_limits():
    guide, reference = normals(0, 500), normals(1, 700)
    ax = plots.guide_against_posterior(guide, reference)
    top, right = ax.child_axes
    assert top.get_xlim() == ax.get_xlim() and right.get_ylim() == ax.get_ylim()
    bars = [bar for bar in top.patches if hasattr(bar, "get_height")]
    expected = np.histogram(reference[:, 0], bins=40, range=ax.get_xlim(), density=True)[0]
    assert_same([bar.get_height() for bar in bars], expected)
    bars = [bar for bar in right.patches if hasattr(bar, "get_width")]
    expected = np.histogram(reference[:, 1], bins=40, range=ax.get_ylim(), density=True)[0]
    assert_same([bar.get_width() for bar in bars], expected)


def test_the_two_differ_in_more_than_colour():
    ax = plots.guide_against_posterior(normals(0, 500), normals(1, 500), labels=("q", "NUTS"))
    areas, lines = contours(ax)
    assert areas.filled and not lines.filled
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["q", "NUTS"]


@pytest.mark.parametrize(
    "guide",
    [np.full((100, 2), [1.0, -2.0]), np.random.default_rng(0).integers(0, 3, (100, 2))],
    ids=["point mass", "discrete"],
)
def test_samples_without_a_density_are_drawn_as_well(guide):
    for pair in ((guide, normals(0, 100)), (normals(0, 100), guide), (guide, guide)):
        plots.guide_against_posterior(*pair).figure.canvas.draw()


def test_a_far_tail_does_not_shrink_the_rest():
    reference = normals(0, 1000)
    reference[0] = 1e6
    ax = plots.guide_against_posterior(normals(1, 1000), reference)
    assert ax.get_xlim()[1] < 10.0


Z = np.zeros((5, 2))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.latent_traversal(decode, 2, values=[]), "no units or no values"),
        (lambda: plots.latent_traversal(decode, 2, units=[]), "no units or no values"),
        (lambda: plots.latent_traversal(decode, 2, units=[0, 2]), "must be from 0 to 1"),
        (lambda: plots.latent_traversal(decode, 2, units=[-1]), "must be from 0 to 1"),
        (lambda: plots.latent_traversal(decode, 2, base=torch.zeros(3)), r"shape \[2\], got \[3\]"),
        (lambda: plots.latent_traversal(decode, 2, values=[np.nan]), "base and values must be"),
        (
            lambda: plots.latent_traversal(lambda z: z, 2),
            r"decode must return \[14, height, width\] for 14 codes, got \[14, 2\]",
        ),
        (lambda: plots.latent_traversal(lambda z: decode(z)[:1], 2), r"got \[1, 3, 3\]"),
        (lambda: plots.latent_traversal(lambda z: -decode(z), 2), r"in \[0, 1\], got -0.9"),
        (lambda: plots.latent_traversal(lambda z: decode(z) * torch.nan, 2), "got nan to nan"),
        (lambda: plots.guide_against_posterior(Z[:, 0], Z), "guide_samples must have shape"),
        (lambda: plots.guide_against_posterior(Z, Z[:1]), "reference_samples must have shape"),
        (lambda: plots.guide_against_posterior(Z, np.zeros((5, 3))), "2 dims, the reference's 3"),
        (lambda: plots.guide_against_posterior(Z * np.nan, Z), "guide_samples has 10 values"),
        (lambda: plots.guide_against_posterior(Z, Z, dims=(0, 0)), r"two from 0 to 1, got \(0, 0"),
        (lambda: plots.guide_against_posterior(Z, Z, dims=(0, 2)), "two from 0 to 1"),
        (lambda: plots.guide_against_posterior(Z, Z, names=["a"]), "1 names for 2 dims"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_figure_is_made(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert pyplot.get_fignums() == []
