"""Train a variational autoencoder on real images under each loss: ``python -m pyro_elbo``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path

import torch

from .demo.comparison import Result, binarised_test, compare
from .demo.data import DataError, Images, load_digits, load_npz
from .demo.report import guide_page, print_table, save_tables
from .demo.training import num_batches

NUM_STEPS = 2400
NUM_STEPS_QUICK = 120

NOTES = """\
Held-out images; every run is judged at β = 1 by the same estimator, ± is its standard error, and
log p(x) ≥ the importance-weighted bound of the same samples. A unit is active where the variance
of its posterior mean over the images exceeds 0.01. TraceEntropy and TraceGap train alike: for a
Normal guide the exact and the sampled entropy have the same gradient, up to rounding."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        arguments: The command line; that of the process by default.

    Returns:
        The exit code: 0, or 2 where the input cannot be used.
    """
    options = _parser().parse_args(arguments)
    try:
        images = load_digits() if options.data is None else load_npz(options.data)
        _make_folder(options.out)
    except (DataError, OSError) as error:
        print(f"python -m pyro_elbo: error: {error}", file=sys.stderr)
        return 2
    num_epochs = options.epochs or _default_epochs(images, options.quick)
    print(_summary(images, num_epochs), flush=True)
    results = compare(images, num_epochs=num_epochs, seed=options.seed)
    _save(results, images, options, num_epochs)
    print_table(results)
    print(f"\n{NOTES}\n\n{guide_page(results[0])}\n\nFigures and tables are in {options.out}")
    return 0


def _save(
    results: list[Result], images: Images, options: argparse.Namespace, num_epochs: int
) -> None:
    from .demo.figures import save_figures

    settings = {"data": images.name, "seed": options.seed, "epochs": num_epochs}
    save_tables(results, settings, options.out)
    x = binarised_test(images, options.seed)
    save_figures(results, images, x, seed=options.seed, out=options.out)


def _summary(images: Images, num_epochs: int) -> str:
    return (
        f"{images.name}: {len(images.train):,} training and {len(images.test):,} held-out images, "
        f"{images.height} by {images.width} pixels; epochs: {num_epochs}, "
        f"steps a run: {num_epochs * num_batches(images.train):,}"
    )


def _default_epochs(images: Images, quick: bool) -> int:
    steps = NUM_STEPS_QUICK if quick else NUM_STEPS
    return max(1, round(steps / num_batches(images.train)))


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {out}: {error.strerror}; name another folder") from error
    if not os.access(out, os.W_OK):
        raise OSError(f"--out {out}: no permission to write; name another folder")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyro_elbo",
        description="Train a variational autoencoder on real images under each loss and weight, "
        "and show what every bound is made of.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("pyro_elbo_demo"), help="folder to write (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=_integer(0), default=0, help="decides every number (%(default)s)"
    )
    parser.add_argument(
        "--epochs", type=_integer(1), help=f"default: what makes about {NUM_STEPS:,} steps a run"
    )
    parser.add_argument("--quick", action="store_true", help=f"about {NUM_STEPS_QUICK} steps a run")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="images x_train and x_test, [n, height, width], in [0, 1] or uint8; "
        "default: the digits of scikit-learn",
    )
    return parser


def _integer(least: int, most: int = 2**32 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}, got {value}")
        return value

    parse.__name__ = "integer"
    return parse


def _set_up_process() -> None:
    """One thread, with which networks this small train fastest; no failure on a plain terminal."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


if __name__ == "__main__":
    _set_up_process()
    sys.exit(main())
