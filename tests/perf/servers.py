# SPDX-License-Identifier: LGPL-2.1-only
"""The servers, each as a template of its command line, and one that runs."""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.lib.programs import program
from tests.perf import nbd, proc

FORMATS = ("raw", "vpc", "qcow2")
PLACES = ("img", "sock", "format", "type")
TAPDISK_TYPES = {"raw": "aio", "vpc": "vhd"}
START_SECONDS = 20.0


class TemplateError(ValueError):
    """A --server that can't be understood; the text says what it must look like."""


class ServerError(Exception):
    """A server that did not start, or ended by itself."""


@dataclass(frozen=True)
class Server:
    """argv holds {img}, {sock} and, if wanted, {format} (raw, vpc, qcow2) and {type} (aio, vhd)."""

    name: str
    argv: tuple[str, ...]
    formats: tuple[str, ...] = ("raw",)
    parents: bool = False  # serves chains, in the formats that have parents for it
    buffered: bool = False  # goes through the page cache
    note: str = ""

    def command(self, image: Path, sock: Path, image_format: str) -> list[str]:
        """The command line for an image."""
        values = {
            "img": str(image),
            "sock": str(sock),
            "format": image_format,
            "type": TAPDISK_TYPES.get(image_format, image_format),
        }
        return [fill(word, values) for word in self.argv]

    def public_argv(self) -> str:
        """The template without where this machine has the program."""
        return shlex.join([Path(word).name if word.startswith("/") else word for word in self.argv])


def fill(word: str, values: Mapping[str, str]) -> str:
    """Put the values in place of {name}; all other braces are left alone, and values are not looked at again."""
    out, rest = "", word
    while rest:
        start = min((i for i in (rest.find("{" + name + "}") for name in values) if i >= 0), default=-1)
        if start < 0:
            break
        end = rest.index("}", start)
        out += rest[:start] + values[rest[start + 1 : end]]
        rest = rest[end + 1 :]
    return out + rest


def parse_template(text: str) -> Server:
    """NAME[:FORMAT,...]=CMD {img} {sock}. Raises TemplateError."""
    usage = "want NAME[:raw,vpc,qcow2]=CMD with {img} and {sock}"
    head, equals, line = text.partition("=")
    name, _, formats_text = head.partition(":")
    if not equals or not name.strip():
        raise TemplateError(f"--server {text!r}: no name; {usage}")
    try:
        argv = tuple(shlex.split(line))
    except ValueError as error:
        raise TemplateError(f"--server {text!r}: {error}; {usage}") from error
    if not argv:
        raise TemplateError(f"--server {text!r}: no command; {usage}")
    for place in ("{img}", "{sock}"):
        if not any(place in word for word in argv):
            raise TemplateError(f"--server {text!r}: {place} is missing; {usage}")
    formats = tuple(formats_text.split(",")) if formats_text else ("raw",)
    for image_format in formats:
        if image_format not in FORMATS:
            raise TemplateError(f"--server {text!r}: no format {image_format!r}; {usage}")
    return Server(name.strip(), argv, formats)


def tapdisk() -> Server:
    """Ours, of the release build. Raises FileNotFoundError if it is not built."""
    path = program("tapdisk", "release")
    return Server("tapdisk", (str(path), "--nbd={sock}", "{type}:{img}"), ("raw", "vpc"), parents=True)


def peers() -> list[Server]:
    """The servers of Debian's packages, each in its fastest form of equal durability."""
    qemu_nbd = tuple("qemu-nbd -t -e 8 --cache=none --aio=native -f {format} -k {sock} {img}".split())
    daemon = (
        "qemu-storage-daemon",
        *("--blockdev", "driver=file,node-name=f,filename={img},aio=io_uring,cache.direct=on"),
        *("--blockdev", "driver={format},node-name=n,file=f,cache.direct=on"),
        *("--nbd-server", "addr.type=unix,addr.path={sock}"),
        *("--export", "type=nbd,id=e,node-name=n,name=,writable=on"),
    )
    nbdkit = tuple("nbdkit -f -U {sock} file {img}".split())
    return [
        Server("qemu-nbd", qemu_nbd, FORMATS, parents=True, note="O_DIRECT, Linux AIO"),
        Server("qsd", daemon, FORMATS, parents=True, note="O_DIRECT, io_uring"),
        Server("nbdkit", nbdkit, ("raw",), buffered=True, note="page cache; its flush is timed, reads start cold"),
    ]


def die_with_us(argv: list[str], cpus: str) -> list[str]:
    """The command so that it ends if the bench does, on these CPUs ("": any)."""
    pin = ["taskset", "-c", cpus] if cpus else []
    return ["setpriv", "--pdeathsig", "KILL", *pin, *argv]


class Running:
    """A server that runs on an image, until the end of the `with`.

    The end is SIGTERM, by which it closes its image; one that has not ended in time is killed and that is an error.
    """

    def __init__(
        self,
        server: Server,
        image: Path,
        image_format: str,
        work: Path,
        *,
        cpus: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.server = server
        # Short, since a socket's path has at most 107 bytes.
        self.directory = tempfile.TemporaryDirectory(prefix="xbench-")
        self.sock = Path(self.directory.name) / "s"
        self.argv = die_with_us(server.command(image, self.sock, image_format), cpus)
        self.env = dict(os.environ, **(env or {}))
        self.log = work / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def session(self) -> int:
        """The session of the server's processes, and its main process."""
        assert self.process is not None
        return self.process.pid

    def __enter__(self) -> "Running":
        try:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, start_new_session=True
                )
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def said(self) -> str:
        """What the server printed."""
        return self.log.read_text(errors="replace").strip()[-500:] or "nothing on stderr"

    def _wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with nbd.Client(self.sock, timeout=START_SECONDS):
                    return
            except nbd.NbdError as error:
                raise ServerError(f"{self.server.name}: {error}: {self.said()}") from error
            except OSError as error:
                if self.process.poll() is not None:
                    status = self.process.returncode
                    raise ServerError(f"{self.server.name}: ended with status {status}: {self.said()}") from error
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"{self.server.name}: no socket after {START_SECONDS:.0f} s: {self.said()}"
                    ) from error
            time.sleep(0.005)

    def _end(self) -> bool:
        """Whether the server ended when it was asked to."""
        process, in_time = self.process, True
        if process is not None:
            try:
                process.terminate()
                process.wait(30.0)
            except subprocess.TimeoutExpired:
                in_time = False
            for pid in proc.members(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        self.directory.cleanup()
        return in_time

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        assert self.process is not None
        early = self.process.poll()
        in_time = self._end()
        if kind is None and early is not None:
            raise ServerError(f"{self.server.name}: ended by itself with status {early}: {self.said()}")
        if kind is None and not in_time:
            raise ServerError(f"{self.server.name}: not ended 30 s after SIGTERM")
