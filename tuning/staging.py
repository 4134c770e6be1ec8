"""Candidates on their way to the stage: built, and the default put on it before all others."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import TuningError
from .choice import Choice
from .stage import DEFAULT, Board, Session, Stage
from .state import Problem


def built(
    session: Session, problem: Problem, choices: Sequence[Choice]
) -> dict[Choice, bytes | str]:
    """The kernel file of each choice, or why there is none."""
    jobs = [(problem.spec, problem.row, choice) for choice in choices]
    contents = session.build("candidate", jobs)
    return {
        choice: content if isinstance(content, bytes) else str(content)
        for choice, content in zip(choices, contents, strict=True)
    }


def built_default(session: Session, problem: Problem) -> bytes:
    """The kernel file of the default.

    Raises
    ------
    TuningError
        It cannot be built.
    """
    (content,) = built(session, problem, [problem.default]).values()
    if isinstance(content, str):
        raise TuningError(f"the default kernel failed for m={problem.m}: {content}")
    return content


def stage_with(board: Board, problem: Problem, default: bytes) -> Stage:
    """A stage on a board, with the default on it.

    Raises
    ------
    TuningError
        The default does not work.
    """
    stage = Stage(board.bench, problem.spec, problem.m, problem.seed, problem.threads)
    if reason := stage.load(DEFAULT, default):
        check_default(problem, {DEFAULT: reason})
    return stage


def check_default(problem: Problem, failed: dict[str, str]) -> None:
    """Refuse to go on without the default."""
    if DEFAULT in failed:
        raise TuningError(f"the default kernel failed for m={problem.m}: {failed[DEFAULT]}")
