"""When a step is done."""

import math
from itertools import count

import pyro
import pytest
import torch
from em_programs import X, em
from pyro.optim import Adam

from pyro_elbo.steppers import UntilConverged, UntilMutualInformationStopsRising


def moves(rule, losses):
    """How many moves a step takes along these losses."""
    enough = rule.start()
    return next(number for number, loss in enumerate(losses, 1) if enough(loss))


def evaluations(stepper):
    """The moves that the next step takes."""
    seen = []
    handle = stepper.loss.register_gradient_hook(seen.append)
    stepper.step(X)
    handle.remove()
    return len(seen)


def test_it_stops_where_a_window_gains_no_more_than_the_tolerance():
    geometric = [0.5**n for n in range(60)]
    for window, tolerance in ((1, 0.01), (1, 0.0), (4, 1e-3), (7, 0.3)):
        found = moves(UntilConverged(tolerance, window, max_steps=1000), [*geometric, *[0.0] * 40])
        means = torch.tensor(geometric + [0.0] * 40).unfold(0, window, window).mean(-1)
        gains = means[:-1] - means[1:]
        first = next(i for i, gain in enumerate(gains.tolist()) if gain <= tolerance)
        assert found == (first + 2) * window


def test_it_stops_at_the_most_moves_and_at_a_nan():
    falling = (-float(n) for n in count())
    assert moves(UntilConverged(window=3, max_steps=17), falling) == 17
    assert moves(UntilConverged(window=3), [1.0, math.nan, *[0.0] * 30]) == 6


def test_each_step_starts_anew():
    rule = UntilConverged(window=1, max_steps=5)
    assert [moves(rule, [0.0] * 9) for _ in range(3)] == [2, 2, 2]
    interleaved = rule.start(), rule.start()
    assert [one(0.0) for one in interleaved] == [False, False]


def test_a_longer_window_keeps_noise_from_stopping_it():
    """Of 200 noisy descents, windows of 10 stop none before the gain is less than the noise."""
    slope, generator = 0.5, torch.Generator().manual_seed(0)
    noise = torch.randn(200, 60, generator=generator)
    losses = (noise - slope * torch.arange(60.0)).tolist()
    short = [moves(UntilConverged(window=1, max_steps=60), each) for each in losses]
    long = [moves(UntilConverged(window=10, max_steps=60), each) for each in losses]
    assert min(long) == 60 and sum(short) / len(short) < 10


def test_the_information_rule_ends_after_looks_without_a_new_best():
    values = iter([0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 9.0])
    rule = UntilMutualInformationStopsRising(lambda: next(values), every=2, patience=2, until=7)
    found = [moves(rule, [0.0] * 9) for _ in range(15)]
    assert found == [7] * 12 + [1] * 3
    assert (rule.is_rising, rule.best) == (False, 0.4)
    assert next(values) == 9.0


def test_the_information_rule_takes_tensors_and_refuses_a_nan():
    rule = UntilMutualInformationStopsRising(lambda: torch.tensor(math.nan))
    rule.start()
    with pytest.raises(ValueError, match="mutual information must be a finite number, it is nan"):
        rule.start()


def test_a_step_takes_as_many_moves_as_its_rules_say():
    information = iter([0.3, 0.2])
    rule = UntilMutualInformationStopsRising(lambda: next(information), until=4)
    stepper = em(e_steps=rule, m_steps=2)
    assert [evaluations(stepper) for _ in range(4)] == [6, 6, 3, 3]


def test_the_state_of_a_rule_goes_on_where_it_was():
    def made():
        values = (0.1 * (8 - abs(8 - n)) for n in count())
        rule = UntilMutualInformationStopsRising(lambda: next(values), every=3, until=5)
        return em((Adam({"lr": 0.1}), Adam({"lr": 0.1})), e_steps=rule)

    whole, first, second = made(), made(), made()
    expected = [evaluations(whole) for _ in range(40)]
    found = [evaluations(first) for _ in range(20)]
    second.load_state_dict(first.state_dict())
    for _ in range(6):
        second.rules["e"].information()
    assert found + [evaluations(second) for _ in range(20)] == expected
    assert {6, 2} == set(expected)
    assert em().state_dict() == {}
    with pytest.raises(ValueError, match=r"the steps \['e'\], here are \[\]"):
        em().load_state_dict(first.state_dict())


def test_information_is_looked_at_while_the_schedule_is_held():
    counts = []
    stepper = em(e_steps=UntilMutualInformationStopsRising(lambda: counts.append(look()) or 1.0))

    def look():
        stepper.loss.loss_and_grads(stepper.model, stepper.guide, X)
        return stepper.loss.step_count

    for _ in range(2):
        stepper.step(X)
    assert counts == [1] and stepper.loss.step_count == 2
    assert all(pyro.param(name).unconstrained().grad is None for name in pyro.get_param_store())


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: UntilConverged(tolerance=-1.0), ValueError, "tolerance must be finite and >= 0"),
        (lambda: UntilConverged(tolerance=math.nan), ValueError, "tolerance"),
        (lambda: UntilConverged(tolerance="little"), ValueError, "tolerance"),
        (lambda: UntilConverged(window=0), ValueError, "window must be an integer >= 1, not 0"),
        (lambda: UntilConverged(max_steps=2.5), ValueError, "max_steps must be an integer >= 1"),
        (lambda: UntilMutualInformationStopsRising(0.3), TypeError, "information must be a func"),
        (lambda: UntilMutualInformationStopsRising(float, every=0), ValueError, "every"),
        (lambda: UntilMutualInformationStopsRising(float, patience=0), ValueError, "patience"),
        (lambda: UntilMutualInformationStopsRising(float, every=True), ValueError, "every"),
        (lambda: UntilMutualInformationStopsRising(float, until="done"), TypeError, "until must"),
        (lambda: UntilMutualInformationStopsRising(float, until=0), ValueError, "until must be"),
    ],
)
def test_bad_rules_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
