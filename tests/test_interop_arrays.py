"""The half of the ArviZ interface that needs no torch, alone, under ArviZ 0.x or 1.x.

Where torch is not installed: ``pytest --noconftest -c /dev/null tests/test_interop_arrays.py``.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import arviz as az
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
FILE = Path(__file__).parents[1] / "pyro_elbo" / "interop" / "arrays.py"
OLD = az.__version__.startswith("0.")


def load():
    spec = importlib.util.spec_from_file_location("interop_arrays", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["interop_arrays"] = module
    spec.loader.exec_module(module)
    return module


arrays = load()
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(3, 2, 1000))


def arviz_khat(weights):
    if OLD:
        return az.psislw(weights)[1]
    from arviz_stats.base import array_stats

    return array_stats.psislw(-weights)[1]


def test_the_file_needs_no_torch():
    program = (
        "import sys, importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('arrays', {str(FILE)!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['arrays'] = module\n"
        "spec.loader.exec_module(module); assert 'arviz' not in sys.modules\n"
        "module.psis_khat([float(i) for i in range(30)])\n"
        "assert 'arviz' in sys.modules and 'torch' not in sys.modules"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    subprocess.run(command, check=True)


def test_khat_is_that_of_arviz_for_each_datum():
    khat = arrays.psis_khat(NORMAL)
    assert khat.shape == (3, 2) and (arrays.why_no_khat(NORMAL) == "").all()
    for at in np.ndindex(3, 2):
        assert khat[at] == arviz_khat(NORMAL[at].copy())


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.5])
def test_khat_is_the_shape_of_pareto_weights(shape):
    size = 20_000
    weights = -shape * np.log(np.random.default_rng(1).uniform(size=size))
    tail = 3 * size**0.5
    shrunk = (tail * shape + 5) / (tail + 10)
    assert abs(arrays.psis_khat(weights) - shrunk) < 5 * (1 + shape) / tail**0.5
    assert arrays.psis_khat(-weights) < 0


def test_a_constant_changes_nothing_and_the_input_stays():
    given = NORMAL.copy()
    shifted = arrays.psis_khat(NORMAL + 300.0)
    assert np.allclose(shifted, arrays.psis_khat(NORMAL), rtol=1e-9)
    assert (given == NORMAL).all()


def some(value, at=slice(5)):
    weights = NORMAL[0, 0].copy()
    weights[at] = value
    return weights


REASONS = {
    "no samples": (np.zeros(0), "there are 0 samples"),
    "few samples": (NORMAL[0, 0, :24], "there are 24 samples"),
    "a number": (1.0, "there are 1 samples"),
    "nan": (some(np.nan), "infinite or nan"),
    "infinity": (some(np.inf), "infinite or nan"),
    "no weight": (np.full(100, -np.inf), "every weight is 0"),
    "equal": (np.full(100, -3.0), "all weights are equal"),
    "integers": (np.full(100, 3), "all weights are equal"),
    "equal to rounding": (-40 + 1e-14 * NORMAL[0, 0], "all weights are equal"),
    "equal in single precision": (
        (-40 + 1e-5 * NORMAL[0, 0]).astype(np.float32),
        "all weights are equal",
    ),
    "equal on top": (some(5.0, slice(500)), "largest weights are equal"),
    "one weight": (some(-np.inf, slice(1, None)), "no Pareto shape fits"),
}


@pytest.mark.parametrize("case", REASONS)
def test_no_khat_has_a_reason(case):
    weights, why = REASONS[case]
    assert np.isnan(arrays.psis_khat(weights))
    assert why in str(arrays.why_no_khat(weights))


def test_the_precision_of_weights_may_be_said():
    weights = -40 + 1e-5 * NORMAL[0, 0]
    assert np.isfinite(arrays.psis_khat(weights))
    assert np.isnan(arrays.psis_khat(weights, eps=np.finfo(np.float32).eps))


def test_weights_of_0_are_allowed():
    weights = some(-np.inf, slice(300))
    assert arrays.why_no_khat(weights) == "" and arrays.psis_khat(weights) < 0.7


def test_bad_data_do_not_touch_the_others():
    weights = np.stack([NORMAL[0, 0], np.full(1000, np.nan), NORMAL[0, 1], np.zeros(1000)])
    khat = arrays.psis_khat(weights)
    assert (khat[[0, 2]] == arrays.psis_khat(NORMAL[0])).all() and np.isnan(khat[[1, 3]]).all()
    assert [bool(why) for why in arrays.why_no_khat(weights)] == [False, True, False, True]


def test_khat_is_never_infinite_and_never_fails():
    rng = np.random.default_rng(2)
    for _ in range(300):
        size = int(rng.integers(20, 60))
        weights = rng.choice([-np.inf, 0.0, 1.0, -700.0, 1e300, rng.normal()], size=(2, size))
        weights += rng.choice([0.0, 1e-300, 1.0]) * rng.normal(size=(2, size))
        khat, why = arrays.psis_khat(weights), arrays.why_no_khat(weights)
        assert not np.isinf(khat).any() and (np.isnan(khat) == (why != "")).all()


def example(shift=0.0):
    draws = np.random.default_rng(3).normal(size=(200, 3))
    data = np.array([0.5, -0.5, 1.0])
    log_likelihood = -0.5 * (data - 0.1 * draws - shift) ** 2
    return arrays.inference_data(
        {
            "posterior": {"z": arrays.Variable(draws, ("data",))},
            "log_likelihood": {"x": arrays.Variable(log_likelihood, ("data",))},
            "observed_data": {"x": arrays.Variable(data, ("data",))},
        },
        {"data": np.array([7, 8, 9])},
        {"posterior": {"notes": "none"}},
    )


def test_groups_have_dims_and_coordinates():
    data = example()
    posterior = data["posterior"]
    assert dict(posterior["z"].sizes) == {"chain": 1, "draw": 200, "data": 3}
    assert posterior["data"].values.tolist() == [7, 8, 9]
    assert posterior.attrs["notes"] == "none"
    assert data["observed_data"]["x"].dims == ("data",)
    assert type(data).__name__ == ("InferenceData" if OLD else "DataTree")


@pytest.mark.filterwarnings("ignore")  # what ArviZ does to pandas and matplotlib
def test_arviz_takes_them():
    first, second = example(), example(shift=1.0)
    assert len(az.summary(first, kind="stats")) == 3
    assert np.isfinite(az.loo(first, pointwise=True).pareto_k).all()
    assert list(az.compare({"bad": second, "good": first}).index) == ["good", "bad"]
    (az.plot_posterior if OLD else az.plot_dist)(first)


def variables(**shapes):
    return {
        name: arrays.Variable(np.zeros((9, *shape)), dims) for name, (shape, dims) in shapes.items()
    }


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ({"draw": ((), ())}, "site 'draw' has the name of a dim"),
        ({"z": ((2,), ("draw",))}, "site 'z' has two dims 'draw'"),
        ({"z": ((2, 2), ("a", "a"))}, "site 'z' has two dims 'a'"),
        ({"z": ((2,), ("a",)), "y": ((3,), ("a",))}, "site 'y': its dim 'a' has 3 entries, and 2"),
        ({"a": ((), ()), "y": ((3,), ("a",))}, "site 'a' has the name of a dim"),
    ],
)
def test_a_name_stands_for_one_thing(shapes, why):
    with pytest.raises(ValueError, match=why):
        arrays.inference_data({"posterior": variables(**shapes)}, {}, {})


def test_masked_entries_are_left_out():
    values = np.arange(24.0).reshape(2, 3, 4)
    masks = {
        "x": arrays.Variable(np.array([[True, False, False], [True, False, True]]), ("a",)),
        "gone": arrays.Variable(np.zeros((2, 3), dtype=bool), ("a",)),
        "all": arrays.Variable(np.ones((2, 3), dtype=bool), ("a",)),
    }
    whole = arrays.Variable(values, ("a", "x_dim_0"))
    group = arrays.unmasked(
        {name: whole for name in ("gone", "x", "all", "free")}, masks, {"a": np.array([5, 6, 7])}
    )
    assert list(group) == ["x", "all", "free"] and group["all"] is group["free"] is whole
    assert (group["x"].values == values[:, [0, 2]]).all()
    assert group["x"].dims == ("x_entry", "x_dim_0")
    dim, at = group["x"].labels["x_a"]
    assert dim == "x_entry" and at.tolist() == [5, 7]
    data = arrays.inference_data({"log_likelihood": group}, {"a": np.array([5, 6, 7])}, {})
    assert data["log_likelihood"]["x"]["x_a"].values.tolist() == [5, 7]
