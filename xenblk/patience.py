# SPDX-License-Identifier: LGPL-2.1-only
"""How long storage is waited for that may never answer: its file server is away, or its disk is stuck."""

import threading
from collections.abc import Callable
from typing import TypeVar

from xenblk.errors import UserError

Answer = TypeVar("Answer")

OPEN_SECONDS = 20
"""As the block script does."""


def no_answer(path: str) -> UserError:
    """What is said then."""
    return UserError(f"{path}: not open after {OPEN_SECONDS} s; is its file server or disk stuck?")


def asked(path: str, ask: Callable[[], Answer]) -> Answer:
    """What a call says that may hang in the kernel, where no signal ends it. Raises UserError, and what ask raises."""
    answers: list[Answer] = []
    errors: list[OSError] = []

    def run() -> None:
        try:
            answers.append(ask())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(OPEN_SECONDS)
    if errors:
        raise errors[0]
    if not answers:
        raise no_answer(path)
    return answers[0]
