# SPDX-License-Identifier: LGPL-2.1-only
"""The model of what sectors may hold (tests/lib/expected.py), where it is more than the obvious."""

from collections.abc import Sequence

from tests.lib.expected import Expected


class Answers:
    """A disk that answers what it is told to."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)

    def batch(self, commands: Sequence[str]) -> list[str]:
        return [self._answers.pop(0) for _ in commands]


def run(expected: Expected, command: str, answer: str) -> None:
    expected.run(Answers(answer), [command], faults=True)


def test_a_failed_write_may_show_after_a_loss_where_the_leaf_holds_nothing() -> None:
    """Zeros hid it: they are not written where there is nothing to hide. The next write's bits may come without its data."""
    expected = Expected(4)
    run(expected, "w 0 2 5", "err 5")
    run(expected, "z 0 2", "ok")
    run(expected, "f", "ok")
    assert expected.after_loss[0] == {0}
    run(expected, "w 0 1 6", "err 5")
    assert expected.after_loss == [{0, 5, 6}, {0}, {0}, {0}]


def test_a_failed_write_does_not_show_again_once_another_is_durable() -> None:
    expected = Expected(1)
    run(expected, "w 0 1 5", "err 5")
    run(expected, "w 0 1 6", "ok")
    run(expected, "f", "ok")
    run(expected, "w 0 1 7", "err 5")
    assert expected.after_loss == [{6, 7}]
