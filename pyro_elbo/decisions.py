"""Questions about values on which the course of an evaluation hangs, asked in one place.

An evaluation that is captured as a graph cannot look at values: it repeats the answers of one that
could. Where the answer may be another one day, the question is kept as a tensor, for the graph to
ask at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

__all__ = ["decide", "decide_values", "recorded", "repeated"]

_Question = Callable[[], Any]
_answering: list[Callable[[_Question, str], bool]] = []


def decide(question: _Question) -> bool:
    """The answer to a question about values; the one on tape, where answers are repeated."""
    return _answering[-1](question, "") if _answering else bool(question())


def decide_values(question: _Question, held: str = "always") -> bool:
    """The same for a question whose answer a tensor may be.

    Args:
        question: The question.
        held: Whether an evaluation that repeats the answer has to have it: ``"always"``, or only
            ``"if yes"``.
    """
    return _answering[-1](question, held) if _answering else bool(question())


@contextmanager
def recorded() -> Iterator[list[bool]]:
    """Inside, every answer is kept; the list holds them, in order."""
    answers: list[bool] = []

    def answer(question: _Question, held: str) -> bool:
        answers.append(bool(question()))
        return answers[-1]

    with _answered_by(answer):
        yield answers


@contextmanager
def repeated(answers: Sequence[bool]) -> Iterator[list[Tensor]]:
    """Inside, questions are answered as before; the list holds what is to be true for that.

    Raises:
        RuntimeError: There are more questions, or fewer, than there were.
    """
    left = iter(answers)
    assumed: list[Tensor] = []

    def answer(question: _Question, held: str) -> bool:
        try:
            expected = next(left)
        except StopIteration:
            raise RuntimeError("the evaluation asks for more than the one before it") from None
        if held == "always" or (held and expected):
            found = question()
            assumed.extend([found if expected else ~found] if isinstance(found, Tensor) else [])
        return expected

    with _answered_by(answer):
        yield assumed
    if next(left, None) is not None:
        raise RuntimeError("the evaluation asks for less than the one before it")


@contextmanager
def _answered_by(answer: Callable[[_Question, str], bool]) -> Iterator[None]:
    _answering.append(answer)
    try:
        yield
    finally:
        _answering.pop()
