"""Rules of early stopping: closed forms, and the error rates that they state."""

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import binom
from support import FAILURE_BUDGET, MAX_COMPARISONS

from pyro_elbo.training import Plateau, RelativeChange, stop_rules

LENGTH = 20_000
STEPS = np.arange(LENGTH)
ENDS = [int(1000 * 1.25**i) for i in range(14)]
LEVEL = FAILURE_BUDGET / MAX_COMPARISONS / 2

# The documented share of false stops, and the length at which half of the plateaus are stopped
# with a noise of 1 nat.
DOCUMENTED = {
    "normal": (0.012, 1562),
    "t3": (0.018, 1250),
    "t2": (0.010, 2746),
    "log-normal": (0.010, 1250),
    "ar 0.5": (0.014, 1953),
    "ar 0.9": (0.018, 3814),
    "ar 0.98": (0.030, 5960),
}


def noise(kind, size, rng):
    """Streams of mean 0 and variance 1 (t2: of none), shape (size, LENGTH)."""
    shape = (size, LENGTH)
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind[0] == "t":
        freedom = int(kind[1])
        return rng.standard_t(freedom, shape) / (3**0.5 if freedom == 3 else 1.0)
    if kind == "log-normal":
        return (np.e**0.5 - np.exp(rng.standard_normal(shape))) / (np.e * (np.e - 1)) ** 0.5
    correlation = float(kind.split()[1])
    fresh = rng.standard_normal((size, LENGTH + 2000))
    return lfilter([(1 - correlation**2) ** 0.5], [1, -correlation], fresh)[:, 2000:]


def stopped_at(rule, values, ends=ENDS):
    """The length at which a stream is stopped, or one more than its own."""
    return next((end for end in ends if rule(values[:end])), len(values) + 1)


def assert_share(count, size, share, what):
    """So many of `size` are not too many or too few for a share."""
    assert binom.sf(count - 1, size, share) > LEVEL, f"{what}: {count} of {size}, not {share:.2%}"
    assert binom.cdf(count, size, share) > LEVEL, f"{what}: {count} of {size}, not {share:.2%}"


@pytest.mark.parametrize("kind", ["normal", "t3", "ar 0.9"])
def test_slow_rises_go_on_and_noisy_plateaus_are_stopped_as_documented(kind):
    """200 rises by just the least gain, the worst case, and 200 plateaus."""
    rule, values = Plateau(), noise(kind, 200, np.random.default_rng(1))
    false_stops = sum(stopped_at(rule, rise) <= LENGTH for rise in values + STEPS / 1000)
    misses = sum(stopped_at(rule, plateau) > LENGTH for plateau in values)
    assert_share(false_stops, 200, DOCUMENTED[kind][0], kind)
    assert false_stops <= 0.05 * 200
    assert misses == 0


def test_a_rise_that_is_not_the_slowest_goes_on():
    values = noise("normal", 200, np.random.default_rng(2)) + 3 * STEPS / 1000
    assert all(stopped_at(Plateau(), rise) > LENGTH for rise in values)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DOCUMENTED)
def test_the_documented_rates(kind):
    rule, rng = Plateau(), np.random.default_rng(3)
    values = np.concatenate([noise(kind, 500, rng) for _ in range(4)])
    false_stops = sum(stopped_at(rule, value + STEPS / 1000) <= LENGTH for value in values)
    ends = np.array([stopped_at(rule, value) for value in values])
    share, median = DOCUMENTED[kind]
    assert_share(false_stops, 2000, share, "false stops")
    assert not (ends > LENGTH).any()
    earlier, later = (ends < median).sum(), (ends > median).sum()
    assert max(earlier, later) <= binom.isf(LEVEL, 2000, 0.5), "the median"


@pytest.mark.slow
def test_a_first_look_within_the_noises_memory_is_too_soon():
    """AR(1) noise of 0.99 has an autocorrelation time of 199: first should be 2,000."""
    values = noise("ar 0.99", 1000, np.random.default_rng(4)) + STEPS / 1000
    soon, late = Plateau(), Plateau(first=2000)
    ends = [int(2000 * 1.25**i) for i in range(11)]
    assert_share(sum(stopped_at(soon, rise) <= LENGTH for rise in values), 1000, 0.084, "soon")
    assert sum(stopped_at(late, rise, ends) <= LENGTH for rise in values) <= 0.05 * 1000


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_one_look_at_normal_noise_has_its_level_exactly(scale, monkeypatch):
    """The statistic is Student's t with 6 degrees of freedom, whatever the noise's scale."""
    monkeypatch.setattr(stop_rules, "LOOKS", 1)
    rule = Plateau(confidence=0.8, min_gain=1.0, horizon=1000)
    values = scale * np.random.default_rng(5).standard_normal((2000, 1000))
    stops = sum(rule(rise) is not None for rise in values + np.arange(1000) / 1000)
    assert_share(stops, 2000, 0.2, "level")


@pytest.mark.parametrize("first", [32, 1000, 1001])
def test_the_gain_of_a_line_is_exact(first):
    steps = np.arange(first)
    rule = Plateau(min_gain=2.0, horizon=50, first=first)
    assert rule(-1e3 + 0.0401 * steps) is None
    assert rule(-1e3 + 0.0396 * steps).startswith("a gain of 1.98 ± ")
    assert rule(-1e3 - 5.0 * steps).startswith("a gain of -250 ± ")


def test_where_the_rise_slows_down_the_gain_ahead_is_less_than_said():
    for time in (100.0, 1000.0, 3000.0):
        values = -100 * np.exp(-STEPS / time)
        end = stopped_at(Plateau(min_gain=1.0, horizon=1000), values)
        assert end <= LENGTH
        assert 100 * np.exp(-end / time) * -np.expm1(-1000 / time) < 1.0


def test_a_relative_gain_is_a_share_of_the_elbo():
    rises = -1e4 + 0.5 * np.arange(1000)
    assert Plateau(min_gain=0.06, horizon=1000, relative=True)(rises)
    assert Plateau(min_gain=0.04, horizon=1000, relative=True)(rises) is None
    assert Plateau(min_gain=0.06, horizon=1000)(rises) is None


def test_it_looks_at_lengths_of_its_own():
    """So that how often it is asked does not change its error rate."""
    rule, values = Plateau(), np.random.default_rng(0).standard_normal(1250)
    assert rule(values[:999]) is None
    first = rule(values[:1000])
    values[1000:] = 1e9
    assert all(rule(values[:length]) == first for length in range(1000, 1250))
    assert rule(values) is None


def test_a_longer_stream_than_all_looks_is_judged_as_at_the_last(monkeypatch):
    monkeypatch.setattr(stop_rules, "LOOKS", 2)
    values = np.r_[np.arange(1250.0), np.zeros(9000)]
    assert Plateau()(values) is None
    assert Plateau()(np.zeros(9000)).startswith("a gain of 0 ± 0 nats")


def test_stans_rule_is_the_mean_or_the_median():
    rule = RelativeChange(tolerance=0.1, window=3, block=1)
    by_median = np.array([1.0, 1.0, 1.0, 10.0])
    assert rule(by_median).startswith("a median relative change of 0 and a mean one of 0.3")
    by_mean = np.array([1.0, 1.0, 1 / 0.88, 1 / 0.88**2])
    assert rule(by_mean).startswith("a median relative change of 0.12 and a mean one of 0.08")
    assert rule(np.array([1.0, 2.0, 2.0, 4.0])) is None
    assert rule(np.array([1.0, 1.0, 1.0])) is None


def test_stans_rule_sees_whole_blocks():
    rule = RelativeChange(tolerance=0.1, window=1, block=2)
    assert rule(np.array([9.0, 1.0, 3.0, 1.0])) is None
    assert rule(np.array([1.0, 3.0, 3.0, 1.0, 99.0])).startswith("a median relative change of 0 ")


def test_a_relative_change_from_zero_is_no_change_that_is_small():
    assert RelativeChange(window=2, block=1)(np.zeros(9)) is None


@pytest.mark.parametrize(
    ("tolerance", "false_stops", "misses"), [(0.01, 200, 0), (0.001, 200, 0), (0.0001, 1, 200)]
)
def test_stans_rule_errs_as_documented(tolerance, false_stops, misses):
    rule, rng = RelativeChange(tolerance), np.random.default_rng(6)
    ends = range(1100, LENGTH + 1, 300)
    values = 10 * rng.standard_normal((200, LENGTH)) - 1000
    found = sum(stopped_at(rule, rise, ends) <= LENGTH for rise in values + STEPS / 1000)
    assert_share(found, 200, false_stops / 200, "false stops")
    found = sum(stopped_at(rule, plateau, ends) > LENGTH for plateau in values)
    assert_share(found, 200, misses / 200, "misses")


@pytest.mark.parametrize(
    ("cls", "kwargs", "match"),
    [
        (Plateau, {"min_gain": 0.0}, "min_gain must be a positive, finite number"),
        (Plateau, {"min_gain": np.inf}, "min_gain must be a positive"),
        (Plateau, {"min_gain": "1"}, "min_gain must be a positive"),
        (Plateau, {"horizon": 0}, "horizon must be an integer >= 1"),
        (Plateau, {"first": 31}, "first must be an integer >= 32"),
        (Plateau, {"confidence": 1.0}, "confidence must be within 0.5 and 1"),
        (Plateau, {"confidence": None}, "confidence must be within 0.5 and 1"),
        (RelativeChange, {"tolerance": -1}, "tolerance must be a positive"),
        (RelativeChange, {"tolerance": np.nan}, "tolerance must be a positive"),
        (RelativeChange, {"window": 0}, "window must be an integer >= 1"),
        (RelativeChange, {"block": 1.5}, "block must be an integer >= 1"),
    ],
)
def test_bad_input(cls, kwargs, match):
    with pytest.raises(ValueError, match=match):
        cls(**kwargs)
