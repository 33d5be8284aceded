# SPDX-License-Identifier: LGPL-2.1-only
"""Waiting for what another process does."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Until the condition is true; AssertionError, which says what it was, if it is not in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
