# SPDX-License-Identifier: LGPL-2.1-only
"""The longest request while snapshots are made: one client writes without a pause, tap-ctl makes one after another.

tests/tool-vbd stands for tapdisk: the same with a ring that brings nothing, so that it takes tap-ctl's commands without
the kernel's driver. The value is the longest latency of all; beside it stands that of the same load without snapshots,
which says how much of it is the machine's.
"""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lib.programs import program
from tests.perf import fio
from tests.perf.images import MIB, Images, tool_disk, whole
from tests.perf.results import Check
from tests.perf.servers import START_SECONDS, ServerError, die_with_us

STALL = "stall"
SNAPSHOTS = 10
SIZE = 256 * MIB
APART = 0.3
AHEAD = 1.0  # until fio has certainly begun

Load = Callable[[list[str], int, int], fio.FioResult]
"""Runs fio's QD 1 writes on this target, a disk of this size, for so many milliseconds."""


class Daemon:
    """A process that tap-ctl commands, with one disk."""

    def __init__(self, control: Path, cpus: str) -> None:
        config = control / "config"
        # If we are killed, it is, and no other is to come.
        config.write_text("restart=no\n", encoding="utf-8")
        self.env = dict(os.environ, XENBLK_CONTROL_DIR=str(control), XENBLK_CONFIG=str(config))
        self.log = control / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                die_with_us([str(program("tests/tool-vbd", "release"))], cpus),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not (control / f"ctl{self.process.pid}").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"tool-vbd: not started: {self.log.read_text(errors='replace')[-300:]}")
            time.sleep(0.01)

    def tap_ctl(self, verb: str, *args: str) -> float:
        """A command to the disk. Returns how long it took, in seconds."""
        argv = [str(program("tap-ctl", "release")), verb, "-p", str(self.process.pid), "-m", "0", *args]
        start = time.monotonic()
        done = subprocess.run(argv, env=self.env, capture_output=True, timeout=60, check=False)
        if done.returncode != 0:
            raise ServerError(f"tap-ctl {verb}: {done.stderr.decode(errors='replace').strip()}")
        return time.monotonic() - start

    def end(self) -> None:
        """Ends it, surely."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def serving(image: Path, cpus: str) -> Iterator[tuple[Daemon, Path]]:
    """A daemon that serves an image, and its NBD socket."""
    with tempfile.TemporaryDirectory(prefix="xbench-") as control:
        daemon = Daemon(Path(control), cpus)
        try:
            daemon.tap_ctl("attach")
            daemon.tap_ctl("open", "-a", f"vhd:{image}")
            yield daemon, Path(control) / f"nbd{daemon.process.pid}.0"
        finally:
            daemon.end()


def under_load(load: Callable[[], fio.FioResult], work: Callable[[], None]) -> float:
    """The longest latency of a load, in ms, while the work is done."""
    found: list[fio.FioResult] = []
    wrong: list[Exception] = []

    def run() -> None:
        try:
            found.append(load())
        except fio.FioError as error:
            wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        time.sleep(AHEAD)
        work()
    finally:
        thread.join()
    if wrong:
        raise wrong[0]
    return found[0].max_us / 1e3


def stall(images: Images, entry: str, cpus: str, load: Load) -> Check:
    """The check; not measured where the program is not built."""
    try:
        program("tests/tool-vbd", "release")
    except FileNotFoundError:
        return Check(STALL, entry, None, "ms", "tests/tool-vbd is not built")
    with tempfile.TemporaryDirectory(prefix="stall-", dir=images.directory) as directory:
        image = Path(directory) / "disk.vhd"
        images.empty(image, "vpc", SIZE)
        tool_disk(image, whole(SIZE))
        with serving(image, cpus) as (daemon, sock):
            milliseconds = int((AHEAD + SNAPSHOTS * APART) * 1000) + 300

            def snapshots() -> None:
                for number in range(SNAPSHOTS):
                    took = daemon.tap_ctl("snapshot", "-n", f"parent{number}.vhd")
                    time.sleep(max(0.0, APART - took))

            def one() -> fio.FioResult:
                return load(fio.by_nbd(sock), SIZE, milliseconds)

            without = under_load(one, lambda: None)
            longest = under_load(one, snapshots)
    text = f"{without:.1f} ms with none"
    return Check(STALL, entry, round(longest, 3), "ms", text)
