# SPDX-License-Identifier: LGPL-2.1-only
"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import TypeVar

OF_THE_DEAD = "in use: another process, or another host"
"""What is said of an image whose lock nobody who lives has."""
DEAD_SECONDS = 30

T = TypeVar("T")


def wait_for(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Until the condition is true; AssertionError, which says what it was, if it is not in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def after_a_kill(use: Callable[[], T]) -> T:
    """What `use` of an image returns, tried again while the kernel has something under way for who was killed with it.

    Programs wait a second for that, and under load it may be more.
    """
    deadline = time.monotonic() + DEAD_SECONDS
    while True:
        try:
            return use()
        except (OSError, AssertionError) as error:
            if OF_THE_DEAD not in str(error) or time.monotonic() > deadline:
                raise
