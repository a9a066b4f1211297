"""What schedules refuse, each with the argument's name."""

import math

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
    Sigmoid,
)

RAMPS = [Linear, Cosine, Sigmoid, Exponential]
SCHEDULES = [
    Constant(1),
    *[ramp(4, 1, 10) for ramp in RAMPS],
    Cyclical(0, 1, 10),
    Piecewise([(0, 4), (10, 1)]),
]
BAD_WEIGHTS = [-1.0, -1e-300, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD_WEIGHTS)
@pytest.mark.parametrize("end", ["start", "stop"])
@pytest.mark.parametrize("ramp", RAMPS)
def test_ramps_refuse_weights_that_are_none(ramp, end, bad):
    with pytest.raises(ValueError, match=end):
        ramp(**{"start": 1.0, "stop": 1.0, end: bad}, num_steps=10)


@pytest.mark.parametrize("end", ["start", "stop"])
def test_exponential_refuses_zero_with_the_remedy(end):
    with pytest.raises(ValueError, match=f"{end} must be > 0.*use Linear or Cosine"):
        Exponential(**{"start": 1.0, "stop": 1.0, end: 0.0}, num_steps=10)


@pytest.mark.parametrize("bad", BAD_WEIGHTS)
@pytest.mark.parametrize(
    "make",
    [
        Constant,
        lambda bad: Cyclical(bad, 1, 10),
        lambda bad: Cyclical(0, bad, 10),
        lambda bad: Piecewise([(0, 1), (5, bad)]),
    ],
)
def test_the_others_refuse_weights_that_are_none(make, bad):
    with pytest.raises(ValueError, match="finite and >= 0"):
        make(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(4, 1, 0), "num_steps must be >= 1"),
        (lambda: Sigmoid(4, 1, 10, steepness=0), "steepness must be finite and > 0"),
        (lambda: Sigmoid(4, 1, 10, steepness=-1), "steepness must be finite and > 0"),
        (lambda: Sigmoid(4, 1, 10, steepness=math.nan), "steepness must be finite and > 0"),
        (lambda: Sigmoid(4, 1, 10, steepness=math.inf), "steepness must be finite and > 0"),
        (lambda: Cyclical(0, 1, 1), "period must be >= 2"),
        (lambda: Cyclical(0, 1, 10, num_cycles=0), "num_cycles must be >= 1"),
        (lambda: Cyclical(0, 1, 10, ramp=0), "ramp is a part of the period"),
        (lambda: Cyclical(0, 1, 10, ramp=1.5), "ramp is a part of the period"),
        (lambda: Cyclical(0, 1, 10, ramp=math.nan), "ramp is a part of the period"),
        (lambda: Piecewise([]), "at least one pair"),
        (lambda: Piecewise([(5, 1), (5, 2)]), "5 follows 5"),
        (lambda: Piecewise([(5, 1), (3, 2)]), "3 follows 5"),
        (lambda: Piecewise([(-1, 1)]), "step of a knot must be >= 0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear("4", 1, 10), "start must be a real number"),
        (lambda: Linear(4, None, 10), "stop must be a real number"),
        (lambda: Linear(4, 1, 10.0), "num_steps must be an integer"),
        (lambda: Sigmoid(4, 1, 10, steepness="6"), "steepness must be a real number"),
        (lambda: Cyclical(0, 1, 10.5), "period must be an integer"),
        (lambda: Cyclical(0, 1, 10, ramp=None), "ramp must be a real number"),
        (lambda: Cyclical(0, 1, 10, num_cycles=2.0), "num_cycles must be an integer"),
        (lambda: Constant(1j), "value must be a real number"),
        (lambda: Piecewise([1, 2]), "a knot is a pair"),
        (lambda: Piecewise([(0, 1, 2)]), "a knot is a pair"),
        (lambda: Piecewise([(0.5, 1)]), "step of a knot must be an integer"),
    ],
)
def test_wrong_kinds_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(step=st.integers(max_value=-1))
def test_negative_steps_are_refused(schedule, step):
    with pytest.raises(ValueError, match="step must be >= 0"):
        schedule(step)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(step=st.floats() | st.none() | st.text())
def test_steps_that_are_no_integers_are_refused(schedule, step):
    with pytest.raises(TypeError, match="step must be an integer"):
        schedule(step)
