# SPDX-License-Identifier: LGPL-2.1-only
"""A bed: a virtual machine with our build installed, which runs commands."""

import atexit
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lib import accel, cache, checkkernel, dmesg, qemu, stage, stuck
from tests.lib.channel import Channel, ChannelLost, Job, JobFailed
from tests.lib.console import Console
from tests.lib.image import BaseImage, base_image
from tests.lib.initrd import Overlay, write_initrd
from tests.lib.qemu import BedSpec

# Idle: 8 s without Xen, 13 s with it; a busy machine takes five times as long.
BOOT_SECONDS = {"sh": 240.0, "systemd": 420.0}
COMMAND_SECONDS = 120.0
KILL_SECONDS = 20.0
# What a bed may write to its root disk.
ROOM = 2 << 30
# A kernel with checkers is that much slower.
CHECKED = 4
# kmemleak takes an object for lost only if it is older than 5 s, and says so when it has scanned twice.
LEAKS = """
modprobe -r blktap || lsmod
mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
leaks=/sys/kernel/debug/kmemleak
[ -e $leaks ] || exit 0
sleep 6; echo scan > $leaks; echo scan > $leaks; cat $leaks; echo clear > $leaks
"""


class BedError(Exception):
    """A bed did not do what it was asked."""


class BedLost(BedError):
    """The machine is gone: it did not boot, crashed, or a command in it can't be ended."""


class CommandFailed(BedError):
    """A command ended with a status other than 0."""


class CommandTimeout(BedError):
    """A command took longer than it may; it was killed."""


@dataclass(frozen=True)
class Result:
    """How a command ended: its status (128 + N for signal N) and what it said. `output` has both streams."""

    command: str
    status: int
    stdout: str
    stderr: str
    output: str


class Process:
    """A command that runs in a bed."""

    def __init__(self, bed: "Bed", command: str, job: Job) -> None:
        self.bed = bed
        self._job = job
        self.command = command

    def output(self) -> str:
        """What came so far of both streams."""
        return bytes(self._job.output).decode(errors="replace")

    @property
    def ended(self) -> bool:
        """Is the command over?"""
        return self._job.over

    def stdin(self, data: bytes) -> None:
        """Feed the command; empty data ends its input."""
        self.bed.channel.stdin(self._job, data)

    def kill(self) -> None:
        """Kill the command and its process group."""
        self.bed.channel.kill(self._job)

    def wait(self, timeout: float = COMMAND_SECONDS, check: bool = True) -> Result:
        """Wait for the end. A command that is not over in time is killed; if it can't be, the bed is."""
        bed = self.bed
        timeout *= bed.slower
        try:
            if not bed.channel.wait(self._job, timeout):
                late = f"no end after {timeout:.0f} s of: {self.command}"
                report = stuck.note(f"{bed}: {late[:200]}\n{bed.what_waits()}")
                bed.channel.kill(self._job)
                ended = bed.channel.wait(self._job, KILL_SECONDS)
                text = f"{late}\n{self.output()[-4000:]}\n{report}"
                if not ended:
                    bed.stop(f"a command can't be killed: {self.command}")
                    raise BedLost(f"{text}\nand it can't be killed\n{bed.console.tail()}")
                raise CommandTimeout(text)
        except JobFailed as error:
            raise BedError(f"{self.command}: {error}") from error
        except ChannelLost as error:
            raise bed.lost(f"{self.command}: {error}") from error
        assert self._job.done is not None
        streams = (self._job.stdout, self._job.stderr, self._job.output)
        texts = [bytes(data).decode(errors="replace") for data in streams]
        result = Result(self.command, int(self._job.done["status"]), *texts)
        if check and result.status:
            raise CommandFailed(f"status {result.status} from: {self.command}\n{result.output[-8000:]}")
        return result


# QEMU dies with the thread that started it (setpriv --pdeathsig): one thread, which lives as long as we do, starts all.
_launcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bed-launcher")
_running: "weakref.WeakSet[Bed]" = weakref.WeakSet()


class Bed:
    """Boot with `start`, or as a context manager; `stop` when done. Methods may be called from several threads."""

    early_crashes = 0

    def __init__(self, spec: BedSpec, overlay: Overlay | None = None) -> None:
        """`overlay`: what to lay over the base image, our build if not given."""
        self.spec = spec
        self.image: BaseImage = base_image(spec.release, spec.packages)
        if spec.kernel:
            self.image = checkkernel.with_kernel(self.image, spec.kernel)
        self._overlay = overlay if overlay is not None else stage.overlay(self.image)
        self.directory: Path = Path()
        self.channel: Channel
        self.console: Console
        self._qemu: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Lock()
        self.failure: str | None = None
        self.boot_seconds = 0.0
        self.dmesg_checks = 0
        self._expected: list[str] = []
        self.log_report = ""

    def __str__(self) -> str:
        spec = self.spec
        return f"bed (Debian {spec.release}, {'Xen' if spec.xen else 'no Xen'}, {spec.init})"

    def __enter__(self) -> "Bed":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def slower(self) -> int:
        """What time limits are multiplied with."""
        return CHECKED if self.spec.kernel else 1

    @property
    def alive(self) -> bool:
        """Does it run, and is nothing known against it?"""
        return self._qemu is not None and self._qemu.poll() is None and self.failure is None

    def start(self) -> None:
        """Boot. A crash of the kernel before our module is in it is counted and tried once more.

        It was seen with Linux 6.12, with Xen and without: a breakpoint that the kernel sets to
        change its own code, and has taken away again, is still met under multi-threaded TCG.
        """
        try:
            self._boot()
        except BedLost:
            early = self.console.crashed_without("blktap")
            self.stop()
            if not early:
                raise
            Bed.early_crashes += 1
            cache.say(f"{self}: early crash, count {Bed.early_crashes}; one more try\n{self.console.tail()}")
            self.failure = None
            self._boot()

    def _boot(self) -> None:
        start = time.monotonic()
        how = accel.accelerator(self.image)
        self.directory = _working_directory()
        _running.add(self)
        try:
            for disk in self.spec.disks:
                if not disk.path.exists():
                    with open(disk.path, "wb") as file:
                        file.truncate(disk.size)
                if disk.log:
                    disk.log.write_bytes(b"")
            write_initrd(self.directory / "initrd", self.image, self._overlay)
            self.channel = Channel(str(self.directory / "agent.sock"))
            args = qemu.command(
                self.spec, self.image, self.directory / "initrd", self.directory / "agent.sock", how
            )
            self._qemu = _launcher.submit(self._launch, args).result()
            assert self._qemu.stdout is not None
            self.console = Console(self._qemu.stdout, self.directory / "console.log", self._crashed)
            threading.Thread(target=self._watch, args=(self._qemu, self.channel), daemon=True).start()
            limit = BOOT_SECONDS[self.spec.init] * self.slower * (3 if self.spec.icount else 1)
            if not self.channel.wait_ready(limit):
                raise BedLost(f"{self}: not ready after {limit:.0f} s\n{self.console.tail()}")
        except ChannelLost as error:
            lost = self.lost(f"boot: {error}")
            self.stop()
            raise lost from error
        except BaseException:
            self.stop()
            raise
        self.boot_seconds = time.monotonic() - start

    def _launch(self, args: list[str]) -> "subprocess.Popen[bytes]":
        env = {**os.environ, "TMPDIR": str(self.directory)}
        with open(self.directory / "qemu.err", "wb") as errors:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=env,
            )

    def _watch(self, process: "subprocess.Popen[bytes]", channel: Channel) -> None:
        """Tell the waiters when QEMU ends."""
        status = process.wait()
        errors = ""
        with contextlib.suppress(OSError):
            errors = (self.directory / "qemu.err").read_text(encoding="utf-8", errors="replace").strip()
        channel.lose(f"QEMU ended with status {status} {errors}".strip())

    def _crashed(self, line: str) -> None:
        """The console shows that the machine is lost."""
        self.failure = line
        # what follows says why: let it come before the waiters are woken
        threading.Timer(1.0, self.channel.lose, [line]).start()

    def lost(self, what: str) -> BedLost:
        """The error for a machine that is gone, with the end of its console."""
        if self.failure is None:
            self.failure = what
        return BedLost(f"{self}: {what}\n--- console\n{self.console.tail()}\n---")

    def popen(self, command: str, env: dict[str, str] | None = None, relay: Any = None) -> Process:
        """Start a command by /bin/sh in /root. `relay(is_stderr, bytes)` gets the output as it comes."""
        try:
            return Process(self, command, self.channel.run(command, env or {}, relay))
        except ChannelLost as error:
            raise self.lost(f"{command}: {error}") from error

    def run(
        self,
        command: str,
        timeout: float = COMMAND_SECONDS,
        check: bool = True,
        env: dict[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Result:
        """Run a command to its end. With `check`, a status other than 0 is CommandFailed."""
        process = self.popen(command, env)
        with contextlib.suppress(ChannelLost):  # the wait reports it
            for start in range(0, len(stdin), 65536):
                process.stdin(stdin[start : start + 65536])
            process.stdin(b"")
        return process.wait(timeout, check)

    def what_waits(self) -> str:
        """What the tasks that can't be killed wait for (lib/stuck.py), if it can be asked."""
        job = self.channel.run(stuck.SCRIPT, {})
        answered = self.channel.wait(job, stuck.SECONDS * self.slower)
        said = bytes(job.output).decode(errors="replace")
        room = shutil.disk_usage(self.directory).free >> 20
        return f"{said if answered else f'it does not answer: {said}'}\nThe disk with {self.directory} has {room} MiB left."

    def put(self, path: str, data: bytes, mode: int = 0o644, timeout: float = COMMAND_SECONDS) -> None:
        """Write a file in the bed."""
        try:
            self.channel.put(path, data, mode, timeout)
        except JobFailed as error:
            raise BedError(f"put {path}: {error}") from error
        except ChannelLost as error:
            raise self.lost(f"put {path}: {error}") from error

    def get(self, path: str, timeout: float = COMMAND_SECONDS) -> bytes:
        """Read a file in the bed whole."""
        try:
            return self.channel.get(path, timeout)
        except JobFailed as error:
            raise BedError(f"get {path}: {error}") from error
        except ChannelLost as error:
            raise self.lost(f"get {path}: {error}") from error

    def dmesg(self) -> str:
        """The kernel's log."""
        return self.run("dmesg").stdout

    def expect_log(self, pattern: str) -> None:
        """This test provokes such lines in the kernel's log (a regular expression)."""
        self._expected.append(pattern)

    def dmesg_findings(self) -> list[str]:
        """Lines of the kernel's log since the last call that no test may leave behind (lib/dmesg.py).

        `log_report` is the log from the first of them on.
        """
        self.dmesg_checks += 1
        mark = f"bed: dmesg check {self.dmesg_checks}"
        text = self.run(f"dmesg; echo {shlex.quote(mark)} > /dev/kmsg").stdout
        before = f"bed: dmesg check {self.dmesg_checks - 1}\n"
        _, kept, text = text.rpartition(before)
        lost = [] if kept or self.dmesg_checks == 1 else ["the kernel's log is not all there: its buffer was too small"]
        if log := os.environ.get("XENBLK_KERNEL_LOG"):
            with open(log, "a", encoding="utf-8") as file:
                file.write(text)
        expected, self._expected = self._expected, []
        lines = dmesg.findings(text, expected)
        self.log_report = dmesg.from_first(text, lines)
        return lost + lines

    def leak_findings(self) -> list[str]:
        """What the checkers of this bed's kernel know when nothing of the driver is in use any more."""
        if not self.spec.kernel:
            return []
        result = self.run(LEAKS, timeout=600.0, check=False)
        lines = [f"{self}: {line}" for line in result.output.splitlines()]
        return lines + [f"{self}: {line}" for line in self.dmesg_findings()]

    def wait_for(self, command: str, timeout: float, interval: float = 1.0) -> Result:
        """Run a command again and again until its status is 0."""
        deadline = time.monotonic() + timeout * self.slower
        while True:
            result = self.run(command, check=False, timeout=max(1.0, deadline - time.monotonic()))
            if result.status == 0:
                return result
            if time.monotonic() > deadline:
                raise CommandTimeout(f"never true in {timeout:.0f} s: {command}\n{result.output[-2000:]}")
            time.sleep(interval)

    def stop(self, failure: str | None = None) -> None:
        """End the machine at once: nothing in it is kept, but for extra disks."""
        with self._stopping:
            if failure and self.failure is None:
                self.failure = failure
            process, self._qemu = self._qemu, None
            if hasattr(self, "channel"):
                self.channel.close()
            if process is not None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                if hasattr(self, "console"):
                    self.console.join(5.0)
                if process.stdout is not None:
                    process.stdout.close()
            if self.directory != Path():
                shutil.rmtree(self.directory, ignore_errors=True)
            _running.discard(self)


def _working_directory() -> Path:
    """A new directory, for the console's record and what the bed writes to its disks.

    /tmp may be too small. Those of processes that were killed are removed.
    """
    base = Path("/var/tmp")
    for old in base.glob("xenblk-bed-*-*"):
        owner = old.name.split("-")[2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(old, ignore_errors=True)
    room = shutil.disk_usage(base).free
    if room < ROOM:
        raise BedError(f"{base} has {room >> 20} MiB left: a bed needs {ROOM >> 20} MiB there: make room")
    return Path(tempfile.mkdtemp(prefix=f"xenblk-bed-{os.getpid()}-", dir=base))


@atexit.register
def _stop_all() -> None:
    for bed in list(_running):
        bed.stop()
