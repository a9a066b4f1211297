"""Random small programs: value, terms and gradient of every loss against the definition."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
from brute_force import RefusedError, brute_force
from forced_draws import ForcedDraws, exact_mean
from programs import SIDES, VALUES
from random_programs import random_program
from support import LOSSES, assert_close, clear_gradients, gradients

from pyro_elbo import TraceGap_ELBO, UnsupportedSiteError

FAST_PROGRAMS = 60
NUM_PROGRAMS = 300
MORE_PROGRAMS = 2000
BATCH = 20
ULPS = 4096  # sums of some hundred terms, in another order


def by_definition(program):
    """The exact terms, averaged over the particles, and the objective's gradient."""
    clear_gradients(program.parameters)
    two = program.options.get("vectorize_particles") and not program.two_point
    particles = [brute_force(program, particle) for particle in range(1 + bool(two))]
    terms = [particle.terms() for particle in particles]
    mean = {name: sum(t[name] for t in terms) / len(terms) for name in terms[0]}
    if mean["objective"].requires_grad:
        mean["objective"].backward()
    grads = gradients(program.parameters)
    return {name: term.detach() for name, term in mean.items()} | grads


def evaluated(program, elbo, names):
    """One evaluation of a loss: its terms, its value and its gradient."""
    clear_gradients(program.parameters)
    loss = elbo.loss_and_grads(program.model, program.guide)
    grads = {name: -grad for name, grad in gradients(program.parameters).items()}
    terms = {name: getattr(elbo.terms, name) for name in names}
    return terms | {"objective": torch.tensor(-loss)} | grads


def check(program):
    try:
        expected = by_definition(program)
    except RefusedError:
        for cls in LOSSES:
            elbo = cls(beta=program.beta, **program.options)
            with pytest.raises(UnsupportedSiteError), ForcedDraws(program):
                evaluated(program, elbo, ())
        return
    terms = expected.keys() - program.parameters.keys()
    for cls in LOSSES if program.two_point or not program.has_noise else [TraceGap_ELBO]:
        elbo = cls(beta=program.beta, **program.options)
        mean, size = exact_mean(program, lambda e=elbo: evaluated(program, e, terms))
        for name, value in expected.items():
            scale = torch.maximum(size[name].max(), torch.ones(()))
            assert_close(mean[name], value, scale, ULPS)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=pytest.mark.slow if seed >= FAST_PROGRAMS else ())
        for seed in range(NUM_PROGRAMS)
    ],
)
def test_a_random_program(seed):
    check(random_program(seed, most_outcomes=16))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(NUM_PROGRAMS, NUM_PROGRAMS + MORE_PROGRAMS, BATCH))
def test_more_random_programs(first):
    for seed in range(first, first + BATCH):
        check(random_program(seed, most_outcomes=12))


def features(program):
    """What a program has, by kind."""
    has = {program.loop, *program.options, type(program.beta).__name__}
    for site in program.sites.values():
        has |= {site.role, site.kind, f"{len(site.plates)} plates"}
        has |= {f"{site.kind} {site.how}"} if site.has_value else set()
        has |= {
            f"{'masks' if h is site.masks else 'scales'} {sorted(h)}"
            for h in (site.masks, site.scales)
        }
    return has


def test_the_programs_have_everything():
    counts = Counter()
    for seed in range(NUM_PROGRAMS):
        counts.update(features(random_program(seed, most_outcomes=16)))
    wanted = {"plate", "markov", "num_particles", "vectorize_particles", "dict", *SIDES, "2 plates"}
    wanted |= {f"{kind} {how}" for kind in VALUES for how in ("draw", "parallel", "sequential")}
    wanted |= {f"{kind} {how}" for kind in ("normal", "lognormal") for how in ("draw", "pathwise")}
    for handler in ("masks", "scales"):
        wanted |= {f"{handler} {sides}" for sides in (["guide"], ["model"], ["guide", "model"])}
    assert all(counts[feature] >= 10 for feature in wanted), counts
