# SPDX-License-Identifier: LGPL-2.1-only
"""A bed's serial console: recorded, and watched for signs that the machine is lost."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

FATAL = re.compile(
    rb"Kernel panic - not syncing|Panic on CPU \d+:|Domain 0 crashed|Hardware Dom0 (crashed|halted)"
    rb"|Attempted to kill init|bed: initrd: |bed: [\w-]+ (did not start|failed|has no socket)|bed: the agent ended"
)
CRASH = re.compile(rb"Kernel panic|Panic on CPU|Dom(ain |0 |)0? ?crashed|Oops: |int3:|general protection fault")
TAIL_LINES = 60


class Console:
    """Reads a console until it ends, in a thread. `on_fatal(line)` is called, once, from that thread."""

    def __init__(self, stream: IO[bytes], log: Path, on_fatal: Callable[[str], None]) -> None:
        self._stream = stream
        self._log = log
        self._on_fatal = on_fatal
        self._data = bytearray()
        self._changed = threading.Condition()
        self.ended = False
        self._thread = threading.Thread(target=self._read, daemon=True, name="bed-console")
        self._thread.start()

    def _read(self) -> None:
        fatal = False
        with open(self._log, "wb") as log:
            while line := self._stream.readline():
                log.write(line)
                log.flush()
                with self._changed:
                    self._data += line
                    self._changed.notify_all()
                if not fatal and FATAL.search(line):
                    fatal = True
                    self._on_fatal(line.decode(errors="replace").strip())
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wait(self, pattern: str, timeout: float) -> bool:
        """Wait until a line matches `pattern`. False if the time is up or the console has ended without it."""
        wanted = re.compile(pattern.encode())
        with self._changed:
            self._changed.wait_for(lambda: bool(wanted.search(self._data)) or self.ended, timeout)
            return bool(wanted.search(self._data))

    def text(self) -> str:
        """All that came so far."""
        with self._changed:
            return self._data.decode(errors="replace").replace("\r", "")

    def tail(self) -> str:
        """The last lines, for a message."""
        return "\n".join(self.text().splitlines()[-TAIL_LINES:])

    def crashed_without(self, module: str) -> bool:
        """Does it show a crash of the kernel or of Xen, and no sign of `module`, which a crash would list?"""
        with self._changed:
            return bool(CRASH.search(self._data)) and module.encode() not in self._data

    def join(self, timeout: float) -> None:
        """Wait for the end of the console."""
        self._thread.join(timeout)
