"""The demo: what it reads, what it refuses, what it computes and what it writes."""

import csv
import json
import math
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from matplotlib.image import imread
from torch import nn

from pyro_elbo.__main__ import main
from pyro_elbo.demo.comparison import compare
from pyro_elbo.demo.data import Images, binarise, load_digits, load_npz
from pyro_elbo.demo.evaluation import CHUNK, evaluate
from pyro_elbo.demo.training import TERMS, runs
from pyro_elbo.demo.vae import VAE

RUNS = list(runs(2))
FIGURES = [
    *("bound.png", "guide.png", "reconstructions.png", "samples.png", "stacked.png"),
    *("terms.png", "traversal.png", "units.png"),
]
TABLES = ["guide_report.txt", "held_out.csv", "results.json", "training.csv"]
MAX_BYTES = 500_000
FLOAT32 = torch.finfo(torch.float32).eps

rng = np.random.default_rng(0)
TRAIN, TEST = rng.random((300, 4, 6)), rng.random((20, 4, 6))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run of one epoch on small images that are not square: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    np.savez(folder / "images.npz", x_train=TRAIN, x_test=TEST)
    arguments = [
        "--data",
        str(folder / "images.npz"),
        "--epochs",
        "1",
        "--out",
        str(folder / "out"),
    ]
    with redirect_stdout(StringIO()) as printed:
        assert main(arguments) == 0
    return folder / "out", printed.getvalue()


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_demo_writes_the_named_files_and_says_where(written):
    out, printed = written
    assert sorted(path.name for path in out.iterdir()) == sorted(FIGURES + TABLES)
    assert printed.rstrip().endswith(str(out))
    assert all(name in printed for name in RUNS)
    for name in FIGURES:
        assert (out / name).stat().st_size < MAX_BYTES
        assert imread(out / name).std() > 0


def test_the_table_has_a_row_for_each_run(written):
    rows = rows_of(written[0] / "held_out.csv")
    assert [row["run"] for row in rows] == RUNS
    assert [float(row["beta_at_end"]) for row in rows] == [1, 1, 1, 4, 1, 1]
    for row in rows:
        value = {name: float(text) for name, text in row.items() if name != "run"}
        assert list(value) == [
            *["elbo", "elbo_standard_error", "importance_bound", "reconstruction", "kl"],
            *["entropy", "active_units", "beta_at_end", "seconds_per_step"],
        ]
        tolerance = 8 * FLOAT32 * abs(value["reconstruction"])
        assert value["elbo"] == pytest.approx(value["reconstruction"] - value["kl"], abs=tolerance)
        assert value["elbo_standard_error"] > 0 and value["seconds_per_step"] > 0
        assert 0 <= value["active_units"] <= 16


def test_the_curves_hold_every_step_and_their_objective_is_weighted(written):
    rows = rows_of(written[0] / "training.csv")
    assert [row["run"] for row in rows] == [name for name in RUNS for _ in range(3)]
    assert [int(row["step"]) for row in rows] == [1, 2, 3] * len(RUNS)
    betas = {name: [float(row["beta"]) for row in rows if row["run"] == name] for name in RUNS}
    assert betas["TraceKL, β = 4"] == [4, 4, 4]
    assert betas["TraceKL, β 4 → 1"] == [4, 1, 1]
    assert betas["TraceKL, β 0 → 1"] == [0, 1, 1]
    for row in rows:
        value = {name: float(row[name]) for name in (*TERMS, "beta")}
        tolerance = 8 * FLOAT32 * abs(value["expected_log_joint"])
        weighted = pytest.approx(value["beta"] * value["kl"], abs=tolerance)
        objective = pytest.approx(value["reconstruction"] - value["weighted_kl"], abs=tolerance)
        assert value["weighted_kl"] == weighted and value["objective"] == objective


def test_the_json_file_holds_the_tables(written):
    record = json.loads((written[0] / "results.json").read_text(encoding="utf-8"))
    assert record["settings"] == {"data": "images.npz", "seed": 0, "epochs": 1}
    rows = rows_of(written[0] / "held_out.csv")
    for run, row in zip(record["runs"], rows, strict=True):
        assert run["run"] == row["run"]
        assert run["held_out"]["elbo"] == float(row["elbo"])
        assert sum(run["held_out"]["unit_active"]) == int(row["active_units"])
        assert run["training"].keys() == {"step", "beta", *TERMS}
        assert all(len(values) == 3 for values in run["training"].values())


def images_of(train, test):
    train, test = torch.as_tensor(train), torch.as_tensor(test)
    height, width = train.shape[1:]
    return Images("images", train.flatten(1), test.flatten(1), height, width)


def numbers(result):
    """All that a run computed, but for the time that it took."""
    curves = result.curves
    return result.held_out, curves.step, curves.beta, curves.terms


def test_a_seed_decides_every_number_and_leaves_no_trace():
    pyro.param("mine", torch.ones(2))
    state = torch.get_rng_state()
    images = images_of(TRAIN, TEST)
    first, again, other = (compare(images, num_epochs=1, seed=seed) for seed in (3, 3, 4))
    assert [numbers(result) for result in first] == [numbers(result) for result in again]
    assert numbers(first[0]) != numbers(other[0])
    assert list(pyro.get_param_store()) == ["mine"]
    assert torch.equal(torch.get_rng_state(), state)


def test_all_runs_start_from_the_same_weights_data_and_noise():
    results = compare(images_of(TRAIN, TEST), num_epochs=1, seed=0)
    assert len({result.curves.terms["reconstruction"][0] for result in results}) == 1
    assert len({result.held_out.kl for result in results}) > 2


def test_the_digits_are_split_the_same_way_each_time():
    images, again = load_digits(), load_digits()
    assert (images.train.shape, images.test.shape) == ((1500, 64), (297, 64))
    assert torch.equal(images.train, again.train) and torch.equal(images.test, again.test)
    assert images.train.min() == 0 and images.train.max() == 1
    assert all(images.train[:, pixel].std() > 0 for pixel in (10, 27, 36))


def test_binarise_takes_the_intensity_as_the_probability():
    intensities = torch.tensor([0.0, 1.0, 0.3]).expand(100_000, 3)
    x = binarise(intensities, torch.Generator().manual_seed(0))
    assert x.unique().tolist() == [0.0, 1.0]
    assert x[:, 0].sum() == 0 and x[:, 1].sum() == len(x)
    standard_error = math.sqrt(0.3 * 0.7 / len(x))
    assert abs(x[:, 2].mean() - 0.3) < 5 * standard_error


SQUARE = (255 * rng.random((5, 3, 3))).astype(np.uint8)


@pytest.mark.parametrize(
    "saved",
    [
        SQUARE,
        SQUARE[..., None],
        SQUARE.reshape(5, 9),
        SQUARE / 255,
        (SQUARE / 255).astype(">f8"),
    ],
    ids=["bytes", "one channel", "flat", "floats", "big-endian"],
)
def test_images_are_read_in_every_layout(tmp_path, saved):
    np.savez(tmp_path / "a.npz", x_train=saved, x_test=saved[:2])
    images = load_npz(tmp_path / "a.npz")
    assert (images.name, images.height, images.width) == ("a.npz", 3, 3)
    expected = torch.tensor(SQUARE.reshape(5, 9) / 255)
    torch.testing.assert_close(images.train, expected, rtol=FLOAT32, atol=0.0)
    assert torch.equal(images.test, images.train[:2])


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32])
def test_black_and_white_images_stay_black_and_white(tmp_path, dtype):
    x = (SQUARE > 127).astype(dtype)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x)
    assert torch.equal(load_npz(tmp_path / "a.npz").train, torch.tensor(x.reshape(5, 9) * 1.0))


def test_dark_bytes_are_scaled_as_the_bright_ones_beside_them(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=SQUARE, x_test=np.ones((2, 3, 3), np.uint8))
    test = load_npz(tmp_path / "a.npz").test
    torch.testing.assert_close(test, torch.full((2, 9), 1 / 255), rtol=FLOAT32, atol=0.0)


GOOD = np.zeros((4, 3, 3))
BAD_FILES = {
    "missing array": ({"x_train": GOOD}, "x_test missing (found: x_train)"),
    "no arrays": ({}, "x_train and x_test missing (found: nothing)"),
    "empty": ({"x_train": GOOD, "x_test": GOOD[:0]}, "x_test has shape (0, 3, 3)"),
    "one image": ({"x_train": GOOD[:1], "x_test": GOOD}, "2 images or more"),
    "no pixels": ({"x_train": GOOD[:, :0], "x_test": GOOD}, "x_train has shape (4, 0, 3)"),
    "one dim": ({"x_train": GOOD[:, 0, 0], "x_test": GOOD}, "x_train has shape (4,)"),
    "colour": ({"x_train": np.zeros((4, 3, 3, 3)), "x_test": GOOD}, "save grey images"),
    "not square": ({"x_train": np.zeros((4, 8)), "x_test": GOOD}, "do not make a square"),
    "two sizes": ({"x_train": GOOD, "x_test": np.zeros((4, 3, 2))}, "3 by 3 pixels and x_test"),
    "too large": ({"x_train": GOOD + 2.5, "x_test": GOOD}, "values from 2.5 to 2.5; scale them"),
    "negative": ({"x_train": GOOD, "x_test": GOOD - 1}, "x_test has values from -1.0 to -1.0"),
    "nan": ({"x_train": GOOD * np.nan, "x_test": GOOD}, "nan or infinite"),
    "infinite": ({"x_train": GOOD, "x_test": GOOD + np.inf}, "nan or infinite"),
    "integers": ({"x_train": GOOD.astype(int), "x_test": GOOD}, "x_train has dtype int64"),
    "words": ({"x_train": GOOD.astype(str), "x_test": GOOD}, "x_train has dtype <U"),
    "objects": ({"x_train": GOOD.astype(object), "x_test": GOOD}, "no .npz file of plain arrays"),
}


def refused(capsys, path, out):
    """The one line that the demo prints where it refuses a file, and writes nothing."""
    assert main(["--data", str(path), "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert f"error: {path}: " in printed.err and ";" in printed.err
    assert not out.exists()
    return printed.err


@pytest.mark.parametrize(("arrays", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_before_anything_is_written(tmp_path, capsys, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    assert message in refused(capsys, tmp_path / "bad.npz", tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive", None], ids=repr)
def test_what_is_no_archive_is_refused(tmp_path, capsys, content):
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    message = "No such file" if content is None else "no .npz file of plain arrays"
    assert message in refused(capsys, path, tmp_path / "out")


def test_a_damaged_archive_is_refused(tmp_path, capsys):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, x_train=TRAIN, x_test=TEST)
    content = bytearray(path.read_bytes())
    content[200:220] = bytes(20)
    path.write_bytes(content)
    assert "no .npz file of plain arrays" in refused(capsys, path, tmp_path / "out")


def test_a_folder_and_a_single_array_are_refused(tmp_path, capsys):
    np.save(tmp_path / "one.npy", GOOD)
    assert "Is a directory" in refused(capsys, tmp_path, tmp_path / "out")
    assert "without a name" in refused(capsys, tmp_path / "one.npy", tmp_path / "out")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(["--out", str(tmp_path / "out")]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [["--epochs", "0"], ["--epochs", "two"], ["--seed", "-1"], ["--seed", str(2**32)], ["--fast"]],
    ids=" ".join,
)
def test_bad_options_are_refused(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert exit.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_code_2_and_one_line():
    command = [sys.executable, "-m", "pyro_elbo", "--data", "no-such-file.npz"]
    folder = Path(__file__).parents[1]
    ended = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert ended.returncode == 2 and ended.stdout == b""
    assert ended.stderr.decode().startswith("python -m pyro_elbo: error: no-such-file.npz: ")
    assert ended.stderr.count(b"\n") == 1


def test_a_collapsed_guide_is_judged_exactly():
    """Where the guide is the prior and the decoder ignores the code, every term is known."""
    vae = VAE(num_pixels=6, num_units=3)
    for network in (vae.encoder, vae.decoder):
        nn.init.zeros_(network[-1].weight)
        nn.init.zeros_(network[-1].bias)
    x = torch.ones(CHUNK + 5, 6)
    held_out = evaluate(vae, x)
    close = {"rel": x.numel() * torch.finfo(x.dtype).eps}
    assert held_out.kl == 0.0 and held_out.unit_kl == [0.0] * 3 and held_out.active_units == 0
    assert held_out.elbo == pytest.approx(-6 * math.log(2), **close)
    assert held_out.importance_bound == pytest.approx(-6 * math.log(2), **close)
    assert held_out.entropy == pytest.approx(1.5 * math.log(2 * math.pi * math.e), **close)
    assert held_out.elbo_standard_error < x.numel() * torch.finfo(x.dtype).eps


def test_a_unit_is_active_where_its_mean_varies():
    """Unit 0 has the first pixel for its mean, the others have 0: KL 1/2 where that pixel is 1."""
    vae = VAE(num_pixels=2, num_units=3)
    vae.encoder = nn.Sequential(nn.Linear(2, 6))
    nn.init.zeros_(vae.encoder[0].weight)
    nn.init.zeros_(vae.encoder[0].bias)
    with torch.no_grad():
        vae.encoder[0].weight[0, 0] = 1.0
    held_out = evaluate(vae, torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 20))
    assert held_out.unit_active == [True, False, False] and held_out.active_units == 1
    assert held_out.unit_kl == [0.25, 0.0, 0.0] and held_out.kl == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_three_losses_meet_and_the_weights_act(seed):
    """On the digits, the losses end within half a nat per image; a large weight closes units."""
    torch.set_default_dtype(torch.float32)
    results = compare(load_digits(), num_epochs=200, seed=seed)
    by_name = {result.name: result for result in results}
    bounds = [result.held_out.elbo for result in results[:3]]
    assert max(bounds) - min(bounds) <= 0.5
    plain, heavy = by_name["TraceKL"].held_out, by_name["TraceKL, β = 4"].held_out
    assert heavy.kl < plain.kl and heavy.active_units < plain.active_units
    assert by_name["TraceKL, β 4 → 1"].beta == 1.0
    assert by_name["TraceKL, β 0 → 1"].beta == 1.0
