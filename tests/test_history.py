"""The history: labelled columns, their forms and their file."""

import numpy as np
import pytest
import xarray

from pyro_elbo import History

COLUMNS = {
    "step": [1, 2, 3],
    "epoch": [0, 0, 1],
    "elbo": [-3.0, -2.5, np.nan],
    "beta": [1.0, 1.0, 1.0],
    "kl:z": [0.0, 0.5, 0.25],
    "kl:a:b": [1.0, 1.5, np.nan],
    "beta:z": [1.0, 1.0, 1.0],
}


def assert_same(one, other):
    assert list(one.columns) == list(other.columns) and one.stopped == other.stopped
    for name in one.columns:
        np.testing.assert_array_equal(one[name], other[name])


def test_columns_by_name_and_by_site():
    history = History(COLUMNS)
    assert history["elbo"][:2].tolist() == [-3.0, -2.5] and len(history) == 3
    assert list(history.kl_by_site) == ["z", "a:b"] and list(history.beta_by_site) == ["z"]
    with pytest.raises(KeyError, match="no column 'loss'; the columns are"):
        history["loss"]


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="vectors of one length"):
        History({"step": [1, 2], "elbo": [0.0]})


@pytest.mark.parametrize("stopped", ["", "it is enough"])
def test_it_is_saved_and_loaded(tmp_path, stopped):
    history = History(COLUMNS, stopped)
    history.save(tmp_path / "run.npz")
    assert_same(History.load(tmp_path / "run.npz"), history)
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


def test_any_name_of_a_site_is_kept(tmp_path):
    history = History({"step": [1], "kl:z": [1.0], "kl:z.npy": [2.0], "kl:../ä b": [3.0]})
    history.save(tmp_path / "run.npz")
    assert_same(History.load(tmp_path / "run.npz"), history)
    History().save(tmp_path / "none.npz")
    assert_same(History.load(tmp_path / "none.npz"), History())


def test_a_name_without_an_ending_is_kept(tmp_path):
    History(COLUMNS).save(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_no_history_is_refused_and_a_failed_write_leaves_the_file(tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(b"not a history")
    with pytest.raises(ValueError, match="is no history"):
        History.load(path)
    History(COLUMNS).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is no history"):
        History.load(path)
    with pytest.raises(FileNotFoundError):
        History.load(tmp_path / "none.npz")
    np.savez(path, version=np.array(99), stopped=np.array(""))
    with pytest.raises(ValueError, match="has version 99; this package reads 1"):
        History.load(path)


def test_pandas_has_the_steps_as_index():
    frame = History(COLUMNS).to_pandas()
    assert frame.index.tolist() == [1, 2, 3] and frame.index.name == "step"
    assert frame["kl:z"].tolist() == COLUMNS["kl:z"]


def test_xarray_has_dims_of_steps_and_sites():
    data = History(COLUMNS, "now").to_xarray()
    assert isinstance(data, xarray.Dataset) and data.attrs == {"stopped": "now"}
    assert float(data["elbo"].sel(step=2)) == -2.5
    assert float(data["kl_by_site"].sel(site="a:b", step=2)) == 1.5
    assert np.isnan(data["beta_by_site"].sel(site="a:b")).all()


def test_an_empty_history_has_all_forms(tmp_path):
    history = History()
    assert len(history) == 0 and str(history) == "no steps were taken"
    history.save(tmp_path / "run.npz")
    assert_same(History.load(tmp_path / "run.npz"), history)
    assert len(history.to_pandas()) == 0 and not history.to_xarray().data_vars


def test_it_prints_ten_rows_at_most():
    count = 1000
    history = History({"step": range(1, count + 1), "elbo": np.linspace(-9, -1, count)})
    lines = str(history).splitlines()
    assert len(lines) == 11 and lines[1].split() == ["1", "-9"] and lines[-1].split()[0] == "1000"
