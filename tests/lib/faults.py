# SPDX-License-Identifier: LGPL-2.1-only
"""The rules of the fault engine (tapdisk-c/io/fault-rules.h), as a test sets them while tapdisk runs."""

import os
from pathlib import Path


class Faults:
    """A file of rules. Without it, which is how it begins, nothing happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hits = path.with_name(path.name + ".hits")

    def engine(self, inner: str = "uring") -> str:
        """The name of the engine that follows these rules."""
        return f"fault:{self.path}:{inner}"

    def set(self, *rules: str) -> None:
        """From the next transfer on, these and no others."""
        new = self.path.with_name(self.path.name + ".new")
        new.write_text("".join(rule + "\n" for rule in rules), encoding="utf-8")
        new.rename(self.path)

    def off(self) -> None:
        """No more faults; what is stuck goes on."""
        self.path.unlink(missing_ok=True)

    def take_hits(self) -> list[str]:
        """What the rules have hit since the last call, "OPERATION OFFSET BYTES FILE" each."""
        lines = self._hits.read_text(encoding="utf-8").splitlines()
        os.truncate(self._hits, 0)
        return lines
