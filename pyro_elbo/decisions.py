"""Questions about values on which the course of an evaluation hangs, asked in one place.

An evaluation that is captured as a graph cannot look at values: it repeats the answers of one that
could.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["decide", "recorded", "repeated"]

_answering: list[Callable[[Callable[[], Any]], bool]] = []


def decide(question: Callable[[], Any]) -> bool:
    """The answer to a question about values; the one on tape, where answers are repeated."""
    return _answering[-1](question) if _answering else bool(question())


@contextmanager
def recorded() -> Iterator[list[bool]]:
    """Inside, every answer is kept; the list holds them, in order."""
    answers: list[bool] = []

    def answer(question: Callable[[], Any]) -> bool:
        answers.append(bool(question()))
        return answers[-1]

    with _answered_by(answer):
        yield answers


@contextmanager
def repeated(answers: Sequence[bool]) -> Iterator[None]:
    """Inside, questions are answered as before, and not asked.

    Raises:
        RuntimeError: There are more questions, or fewer, than there were.
    """
    left = iter(answers)

    def answer(question: Callable[[], Any]) -> bool:
        try:
            return next(left)
        except StopIteration:
            raise RuntimeError("the evaluation asks for more than the one before it") from None

    with _answered_by(answer):
        yield
    if next(left, None) is not None:
        raise RuntimeError("the evaluation asks for less than the one before it")


@contextmanager
def _answered_by(answer: Callable[[Callable[[], Any]], bool]) -> Iterator[None]:
    _answering.append(answer)
    try:
        yield
    finally:
        _answering.pop()
