"""The laws of schedules: exact ends, bounds, one way between, pure."""

import dataclasses
import math
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_elbo.schedules import (
    Constant,
    Cosine,
    Cyclical,
    Exponential,
    Linear,
    Piecewise,
    Ramp,
    Sigmoid,
    ends_at,
)

EPS = sys.float_info.epsilon
RAMPS = [Linear, Cosine, Sigmoid, Exponential]

weights = st.floats(0, 1e300)
positive_weights = st.floats(1e-300, 1e300)
counts = st.integers(1, 10**9)
steps = st.integers(0, 10**10)
ramps = st.one_of(
    st.builds(Linear, weights, weights, counts),
    st.builds(Cosine, weights, weights, counts),
    st.builds(Sigmoid, weights, weights, counts, steepness=st.floats(1e-6, 1e6)),
    st.builds(Exponential, positive_weights, positive_weights, counts),
)
cycles = st.builds(
    Cyclical,
    weights,
    weights,
    period=st.integers(2, 10**6),
    ramp=st.floats(0, 1, exclude_min=True),
    num_cycles=st.none() | st.integers(1, 10**3),
)
pieces = st.builds(
    lambda points: Piecewise(sorted(points.items())),
    st.dictionaries(steps, weights, min_size=1, max_size=6),
)
schedules = st.one_of(ramps, cycles, pieces, st.builds(Constant, weights))


def ends(schedule):
    """The smallest and the largest weight a schedule was given."""
    if isinstance(schedule, Piecewise):
        values = [value for _, value in schedule.knots]
    elif isinstance(schedule, Constant):
        values = [schedule.value]
    else:
        values = [schedule.start, schedule.stop]
    return min(values), max(values)


@given(ramps, steps)
def test_ramps_are_exact_at_both_ends(ramp, extra):
    assert ramp(0) == ramp.start
    assert ramp(ramp.num_steps) == ramp.stop
    assert ramp(ramp.num_steps + extra) == ramp.stop


@given(schedules, steps)
def test_weights_are_floats_between_the_ends(schedule, step):
    low, high = ends(schedule)
    assert type(schedule(step)) is float
    assert low <= schedule(step) <= high


@given(ramps, st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_ramps_go_one_way(ramp, fractions):
    values = [ramp(int(fraction * ramp.num_steps)) for fraction in sorted(fractions)]
    gains = np.diff(values) * (1 if ramp.stop >= ramp.start else -1)
    # Each shape takes fewer than 8 roundings; pow has the condition number of its logarithms.
    roundings = 8 * max(1.0, abs(math.log(ramp.start or 1.0)), abs(math.log(ramp.stop or 1.0)))
    assert (gains >= -roundings * EPS * max(ramp.start, ramp.stop)).all()


@given(schedules, st.lists(steps, min_size=1, max_size=10))
def test_schedules_are_pure(schedule, order):
    first = {step: schedule(step) for step in order}
    twin = pickle.loads(pickle.dumps(schedule))
    assert {step: schedule(step) for step in reversed(order)} == first
    assert {step: twin(step) for step in order} == first
    assert twin == schedule
    assert hash(twin) == hash(schedule)


@given(schedules, steps)
def test_num_steps_is_where_the_weight_stops_changing(schedule, extra):
    end = ends_at(schedule)
    if end is not None:
        assert schedule(end + extra) == schedule(end)


@given(schedules)
def test_schedules_are_frozen(schedule):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, dataclasses.fields(schedule)[0].name, 1)


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize(("start", "stop"), [(4.0, 1.0), (0.25, 1.0)])
def test_ramps_move_at_every_step_on_the_way(ramp, start, stop):
    values = [ramp(start, stop, 20)(step) for step in range(21)]
    assert len(set(values)) == 21


def test_rounding_does_not_carry_a_ramp_past_its_stop():
    assert 1.0 + (1e-20 - 1.0) * 1.0 == 0.0
    assert Sigmoid(1, 1e-20, 100, steepness=1e3)(90) == 1e-20


@pytest.mark.parametrize("ramp", RAMPS)
def test_a_ramp_between_equal_ends_is_constant(ramp):
    assert {ramp(0.1, 0.1, 100)(step) for step in range(100)} == {0.1}


@pytest.mark.parametrize("ramp", [Linear, Cosine, Sigmoid])
def test_kl_warm_up_starts_at_zero_and_passes_the_middle_at_one_half(ramp):
    beta = ramp(0, 1, 100)
    assert (beta(0), beta(100)) == (0.0, 1.0)
    assert beta(50) == pytest.approx(0.5, rel=4 * EPS)


def test_shapes_at_a_quarter_of_the_way():
    assert Linear(4, 1, 100)(25) == 3.25
    assert Cosine(0, 1, 100)(25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2, rel=8 * EPS)
    logistic = [1 / (1 + math.exp(-10 * (t - 0.5))) for t in (0, 0.25, 1)]
    expected = (logistic[1] - logistic[0]) / (logistic[2] - logistic[0])
    # The expected value subtracts numbers near 0.08, each rounded at most 8 times.
    assert Sigmoid(0, 1, 100)(25) == pytest.approx(expected, rel=32 * EPS)
    assert Exponential(16, 1, 100)(25) == pytest.approx(8, rel=8 * EPS)


def test_steepness_leads_from_a_line_to_a_jump():
    flat, steep = (Sigmoid(0, 1, 100, steepness=k) for k in (1e-3, 1e3))
    # tanh(x) = x - x^3/3: the line is missed by at most (k/4)^2 / 3.
    assert flat(25) == pytest.approx(0.25, abs=(1e-3 / 4) ** 2 / 3)
    assert (steep(40), steep(50), steep(60)) == (0.0, 0.5, 1.0)


def test_cycles_ramp_then_hold_then_start_again():
    beta = Cyclical(0, 1, period=10, ramp=0.4, num_cycles=2)
    cycle = [0.0, 0.25, 0.5, 0.75, *[1.0] * 6]
    assert [beta(step) for step in range(25)] == cycle + cycle + [1.0] * 5
    assert beta.num_steps == 14
    assert beta(beta.num_steps - 1) != beta.stop


def test_a_ramp_over_the_whole_period_ends_with_the_last_cycle():
    beta = Cyclical(0, 1, period=4, ramp=1, num_cycles=2)
    assert [beta(step) for step in range(10)] == [0, 0.25, 0.5, 0.75] * 2 + [1, 1]
    assert beta.num_steps == 8


@given(cycles, st.integers(0, 10**3))
def test_each_cycle_starts_at_start(cyclical, cycle):
    over = cyclical.num_cycles is not None and cycle >= cyclical.num_cycles
    assert cyclical(cycle * cyclical.period) == (cyclical.stop if over else cyclical.start)


@given(pieces)
def test_piecewise_is_exact_at_its_knots_and_constant_outside(piecewise):
    for step, value in piecewise.knots:
        assert piecewise(step) == value
    assert piecewise(0) == piecewise.knots[0][1]
    assert piecewise(piecewise.num_steps + 1) == piecewise.knots[-1][1]


@given(st.dictionaries(st.integers(0, 100), st.floats(0, 10), min_size=1, max_size=6))
def test_piecewise_is_numpy_interp(points):
    knots = sorted(points.items())
    grid = np.arange(110)
    expected = np.interp(grid, *zip(*knots, strict=True))
    actual = [Piecewise(knots)(int(step)) for step in grid]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=8 * EPS * 10)


def test_a_jump_is_two_knots_one_step_apart():
    beta = Piecewise([(0, 4), (999, 4), (1000, 1)])
    assert (beta(0), beta(999), beta(1000)) == (4.0, 4.0, 1.0)


def test_schedules_know_when_they_end():
    assert ends_at(Constant(1)) == 0
    assert ends_at(Linear(4, 1, 10)) == 10
    assert ends_at(Piecewise([(3, 1), (7, 2)])) == 7
    assert ends_at(Cyclical(0, 1, 10)) is None
    assert ends_at(lambda step: 1.0) is None


def test_a_callable_whose_num_steps_is_no_step_does_not_say_when_it_ends():
    def beta(step):
        return 1.0

    beta.num_steps = "many"
    assert ends_at(beta) is None


def test_a_new_ramp_is_one_hook():
    class Square(Ramp):
        def at(self, fraction):
            return self.start + (self.stop - self.start) * fraction**2

    assert [Square(0, 4, 2)(step) for step in range(4)] == [0.0, 1.0, 4.0, 4.0]
    assert repr(Square(0, 4, 1)) == "Square(0 -> 4 over 1 step)"


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Constant(4), "Constant(4)"),
        (Linear(4, 1, 1000), "Linear(4 -> 1 over 1000 steps)"),
        (Cosine(0, 0.1, 1), "Cosine(0 -> 0.1 over 1 step)"),
        (Sigmoid(4, 1, 10, steepness=6), "Sigmoid(4 -> 1 over 10 steps, steepness 6)"),
        (Exponential(100, 1, 10), "Exponential(100 -> 1 over 10 steps)"),
        (Cyclical(0, 1, 100), "Cyclical(0 -> 1 in endless cycles of 100 steps, ramp 0.5)"),
        (Cyclical(0, 1, 100, num_cycles=1), "Cyclical(0 -> 1 in 1 cycle of 100 steps, ramp 0.5)"),
        (Piecewise([(0, 4), (10, 1)]), "Piecewise(4 at step 0, 1 at step 10)"),
    ],
)
def test_repr_is_a_sentence(schedule, text):
    assert repr(schedule) == text


@given(ramps, ramps)
def test_repr_tells_schedules_apart(one, other):
    assert (repr(one) == repr(other)) == (one == other)


def test_numbers_of_other_libraries_are_numbers():
    beta = Linear(np.float32(4), np.int64(1), np.int64(10))
    assert beta == Linear(4.0, 1.0, 10)
    assert beta(np.int64(5)) == 2.5
