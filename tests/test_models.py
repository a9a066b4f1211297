"""Programs of many kinds: each loss has the mean of a right one, and so has its gradient."""

from __future__ import annotations

from functools import cache, partial

import pytest
from models import PROGRAMS
from models.brute_force import brute_force
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from support import LOSSES, assert_close, assert_mean, assert_same_mean

from pyro_elbo import BetaELBOMixin, TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO


class BetaTrace_ELBO(BetaELBOMixin, Trace_ELBO):
    pass


class BetaTraceEnum_ELBO(BetaELBOMixin, TraceEnum_ELBO):
    pass


PYRO = {"Trace_ELBO": Trace_ELBO, "TraceEnum_ELBO": TraceEnum_ELBO}
WEIGHTED = {"Trace_ELBO": BetaTrace_ELBO, "TraceEnum_ELBO": BetaTraceEnum_ELBO}

REFERENCE = {name: build().reference for name, build in PROGRAMS.items()}
BY_PYRO = [name for name in PROGRAMS if REFERENCE[name] in PYRO]
WEIGHABLE = [name for name in BY_PYRO if not name.endswith("marginalised")]
# TraceEnum_ELBO adds the gradient of log q, of mean zero, at a score-function site.
SAME_SEED = [name for name in BY_PYRO if ", score, " not in name]
DISCRETE = [
    "mixture, guide factor",
    "change point, discrete",
    "change point, all parallel",
    "change point, auxiliary",
]

REDUCED, FULL, MANY = (40, 100), (100, 200), (100, 400)  # evaluations, particles of each
SEED, OTHER_SEED = 0, 1

pytestmark = pytest.mark.filterwarnings("ignore:site 'z.'. a parent of it in the model")
losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda cls: cls.__name__)
vectorising = pytest.mark.parametrize("vectorise", [False, True], ids=["sequential", "vectorised"])
slow = pytest.mark.slow


def evaluations(name, loss, size, seed=SEED, vectorise=True):
    """The loss and every gradient, at each evaluation; one is enough where nothing is sampled."""
    program = PROGRAMS[name]()
    count, particles = (1, 2) if program.exact else size
    elbo = loss(
        num_particles=particles, vectorize_particles=vectorise, max_plate_nesting=program.plates
    )
    return program.sample(elbo, count, seed)


def magnitude(rows):
    return max(value.abs().max() for value in rows.values())


def assert_all_close(rows, right):
    assert rows.keys() == right.keys()
    for key, expected in right.items():
        assert_close(rows[key], expected, magnitude(right), ulps=256)


@cache
def pyros(name, beta, size):
    """The evaluations of the loss of Pyro that is right on the program."""
    reference = REFERENCE[name]
    loss = PYRO[reference] if beta == 1.0 else partial(WEIGHTED[reference], beta=beta)
    return evaluations(name, loss, size)


def compare_to_pyro(name, rows, beta, size):
    right = pyros(name, beta, size)
    if PROGRAMS[name]().exact:
        assert_all_close(rows, right)
        return
    assert rows.keys() == right.keys()
    for key, expected in right.items():
        assert_same_mean(rows[key], expected, key)


def compare_to_the_definition(name, rows, beta):
    program = PROGRAMS[name]()
    right = brute_force(program, beta)
    if program.exact:
        assert_all_close(rows, right)
        return
    assert rows.keys() == right.keys()
    for key, expected in right.items():
        assert_mean(rows[key], expected, key)


@losses
@pytest.mark.parametrize("name", BY_PYRO)
def test_loss_and_gradients_have_pyros_mean(name, loss):
    compare_to_pyro(name, evaluations(name, loss, REDUCED, OTHER_SEED), 1.0, REDUCED)


@losses
@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("name", DISCRETE)
def test_loss_and_gradients_have_the_mean_of_the_definition(name, beta, loss):
    rows = evaluations(name, partial(loss, beta=beta), REDUCED, OTHER_SEED)
    compare_to_the_definition(name, rows, beta)


@slow
@losses
@pytest.mark.parametrize("name", BY_PYRO)
def test_loss_and_gradients_have_pyros_mean_in_full(name, loss):
    compare_to_pyro(name, evaluations(name, loss, FULL, OTHER_SEED), 1.0, FULL)


@slow
@losses
@pytest.mark.parametrize("beta", [0.5, 4.0])
@pytest.mark.parametrize("name", WEIGHABLE)
def test_weighted_losses_have_pyros_mean_in_full(name, beta, loss):
    rows = evaluations(name, partial(loss, beta=beta), FULL, OTHER_SEED)
    compare_to_pyro(name, rows, beta, FULL)


@slow
@losses
@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("name", DISCRETE)
def test_loss_and_gradients_have_the_mean_of_the_definition_in_full(name, beta, loss):
    rows = evaluations(name, partial(loss, beta=beta), FULL, OTHER_SEED)
    compare_to_the_definition(name, rows, beta)


@slow
@pytest.mark.parametrize("loss", [TraceEntropy_ELBO, TraceKL_ELBO], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", BY_PYRO)
def test_sequential_particles_have_pyros_mean(name, loss):
    rows = evaluations(name, loss, (200, 1), OTHER_SEED, vectorise=False)
    compare_to_pyro(name, rows, 1.0, FULL)


@losses
@pytest.mark.parametrize("name", PROGRAMS)
def test_sequential_particles_are_the_mean_of_evaluations(name, loss):
    singly = evaluations(name, loss, (3, 1), vectorise=False)
    together = evaluations(name, loss, (1, 3), vectorise=False)
    right = {key: value.mean(0, keepdim=True) for key, value in singly.items()}
    assert_all_close(together, right)


@vectorising
@pytest.mark.parametrize("name", SAME_SEED)
def test_the_gap_is_pyros_loss_at_the_same_seed(name, vectorise):
    theirs = evaluations(name, PYRO[REFERENCE[name]], (3, 4), vectorise=vectorise)
    assert_all_close(evaluations(name, TraceGap_ELBO, (3, 4), vectorise=vectorise), theirs)


@vectorising
@pytest.mark.parametrize("name", [name for name in SAME_SEED if name in WEIGHABLE])
def test_the_weighted_gap_is_pyros_loss_at_the_same_seed(name, vectorise):
    losses = [partial(cls, beta=4.0) for cls in (TraceGap_ELBO, WEIGHTED[REFERENCE[name]])]
    assert_all_close(*(evaluations(name, loss, (3, 4), vectorise=vectorise) for loss in losses))


@pytest.mark.parametrize(
    ("sampled", "other"),
    [
        ("mixture", "mixture, parallel"),
        ("mixture", "mixture, sequential"),
        ("hmm", "hmm, parallel"),
        ("semi-supervised VAE", "semi-supervised VAE, parallel"),
        ("semi-supervised VAE", "semi-supervised VAE, sequential"),
        ("topic model", "topic model, parallel"),
        ("topic model, score, parallel", "topic model, parallel"),
        ("change point", "change point, parallel"),
        ("change point, score, marginalised", "change point, marginalised"),
        ("Poisson random effects, score", "Poisson random effects"),
    ],
)
def test_pyros_losses_agree_on_two_treatments_of_a_site(sampled, other):
    compare_to_pyro(sampled, pyros(other, 1.0, REDUCED), 1.0, REDUCED)


@pytest.mark.parametrize("name", ["mixture, guide factor", "change point, auxiliary"])
def test_the_bias_of_trace_elbo_is_found(name):
    with pytest.raises(AssertionError, match="standard errors"):
        compare_to_the_definition(name, evaluations(name, Trace_ELBO, MANY), 1.0)


@pytest.mark.filterwarnings("ignore:Failed to verify mean field")
def test_the_bias_of_trace_mean_field_elbo_is_found():
    name = "deep Gaussian, bottom-up"
    rows = evaluations(name, TraceMeanField_ELBO, REDUCED, OTHER_SEED)
    with pytest.raises(AssertionError, match="standard errors"):
        compare_to_pyro(name, rows, 1.0, REDUCED)
