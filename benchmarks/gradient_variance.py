"""The variance of the gradient, of each loss on each program of ``tests/models``.

Writes a Markdown table: ``PYTHONPATH=tests python benchmarks/gradient_variance.py``.
"""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path

import pyro
import torch
from models import PROGRAMS, Program
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor
from tqdm import tqdm

from pyro_elbo import TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO

SEED = 0
COMPARED = [TraceMeanField_ELBO, TraceGap_ELBO, TraceEntropy_ELBO, TraceKL_ELBO]
TABLE = Path(__file__).with_suffix(".md")
HEAD = """# Variance of the gradient

Regenerate with `PYTHONPATH=tests python benchmarks/gradient_variance.py`.

For each program of `tests/models`, at its initial parameters and its data: the sum over all
unconstrained parameters of the variance of one particle's gradient, minibatches drawn anew.
"Variance" is that of the Pyro loss named before it, in absolute numbers. The other columns are
ratios to it: below 1 is better. Each number has its standard error; a ratio without one is the
same at each evaluation. A dash: the loss refuses the program, or says that it is not right on it.
Programs in which nothing is sampled are left out.

{evaluations} evaluations of each loss, seed {seed}, float64, torch {torch}, pyro {pyro}.

(*) Biased on this program; its variance is a yardstick only.

| program | Pyro's loss | variance | {compared} |
| --- | --- | ---: | {rules} |
"""


def squares(program: Program, loss: type, evaluations: int) -> Tensor:
    """Each evaluation's squared distance from the mean gradient, over all parameters."""
    elbo = loss(max_plate_nesting=program.plates)
    rows = program.sample(elbo, evaluations, SEED)
    del rows["loss"]
    deviations = [(value - value.mean(0)).reshape(evaluations, -1) for value in rows.values()]
    return torch.cat(deviations, 1).square().sum(1) * evaluations / (evaluations - 1)


def applicable_squares(program: Program, loss: type, evaluations: int) -> Tensor | None:
    """The same; ``None`` where Pyro's mean-field loss raises, or warns that it is wrong."""
    theirs = loss is TraceMeanField_ELBO
    with warnings.catch_warnings():
        warnings.simplefilter("error" if theirs else "ignore", UserWarning)
        try:
            return squares(program, loss, evaluations)
        except (NotImplementedError, UserWarning):
            if not theirs:
                raise
            return None


def number(value: Tensor, residuals: Tensor) -> str:
    """A mean, with its standard error from each evaluation's residual unless that is rounding."""
    error = float(residuals.std() / len(residuals) ** 0.5)
    if error <= 1e-9 * value:
        return f"{value:.3g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def ratio(value: Tensor | None, yardstick: Tensor) -> str:
    """The ratio of two means over paired evaluations."""
    if value is None:
        return "–"
    quotient = value.mean() / yardstick.mean()
    return number(quotient, (value - quotient * yardstick) / yardstick.mean())


def row(name: str, evaluations: int) -> str:
    """A program's line of the table."""
    build = PROGRAMS[name]
    reference = build().reference
    loss = TraceEnum_ELBO if reference == "TraceEnum_ELBO" else Trace_ELBO
    yardstick = squares(build(), loss, evaluations)
    others = [applicable_squares(build(), other, evaluations) for other in COMPARED]
    cells = [name, loss.__name__ + " (*)" * (reference == "brute force")]
    cells += [number(yardstick.mean(), yardstick), *(ratio(other, yardstick) for other in others)]
    return f"| {' | '.join(cells)} |\n"


def table(evaluations: int) -> str:
    """The whole file."""
    head = HEAD.format(
        evaluations=evaluations,
        seed=SEED,
        torch=torch.__version__.split("+")[0],
        pyro=pyro.__version__.split("+")[0],
        compared=" | ".join(loss.__name__ for loss in COMPARED),
        rules=" | ".join("---:" for _ in COMPARED),
    )
    names = [name for name, build in PROGRAMS.items() if not build().exact]
    return head + "".join(row(name, evaluations) for name in tqdm(names))


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    pyro.enable_validation(True)
    text = table(options.evaluations)
    print(text, end="")
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
