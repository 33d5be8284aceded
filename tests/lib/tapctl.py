# SPDX-License-Identifier: LGPL-2.1-only
"""A tapdisk in all but the ring (tests/tool-vbd), steered by tap-ctl; its disk is reached by NBD."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lib.programs import program

START_SECONDS = 20
MINOR = 3


class Served:
    """One disk of one tapdisk, at a minor, which may be any."""

    def __init__(
        self,
        directory: Path,
        spec: str,
        *options: str,
        engine: str = "uring",
        settings: Sequence[str] = (),
        dir_sync_fails: Path | None = None,
        mode: str | None = None,
        env: Mapping[str, str] | None = None,
        minor: int = MINOR,
        tapdisk_options: Sequence[str] = (),
    ) -> None:
        """`options`: of tap-ctl open. `settings`: lines of the configuration.

        `tapdisk_options`: of tapdisk itself. `mode`, `env`: the build, and more of its environment, which tap-ctl gets too.
        `dir_sync_fails`: a file; while it is there, tapdisk's syncs of directories fail with the errno that it holds.
        """
        self.directory = Path((env or {}).get("XENBLK_CONTROL_DIR", directory / "ctl"))
        config = directory / "config"
        config.write_text("".join(f"{line}\n" for line in ("version=1", "restart=no", *settings)), encoding="utf-8")
        self._env = {
            **os.environ,
            "XENBLK_CONTROL_DIR": str(self.directory),
            "XENBLK_ENGINE": engine,
            "XENBLK_CONFIG": str(config),
            "DIR_SYNC_FAILS": str(dir_sync_fails or ""),
            **(env or {}),
        }
        self._mode = mode
        self.minor = minor
        self._errors = (directory / "tapdisk.err").open("w+", encoding="utf-8")
        self.process = subprocess.Popen([program("tests/tool-vbd", mode), *tapdisk_options], env=self._env, stderr=self._errors)
        self.pid = self.process.pid
        self.socket = self.directory / f"nbd{self.pid}.{minor}"
        try:
            self._open(spec, *options)
        except AssertionError:
            self.kill()
            print(self.log())
            self._errors.close()
            raise

    def _open(self, spec: str, *options: str) -> None:
        end = time.monotonic() + START_SECONDS
        while not (self.directory / f"ctl{self.pid}").exists():
            assert self.process.poll() is None and time.monotonic() < end, self.log()
            time.sleep(0.01)
        self.ok("attach")
        self.ok("open", "-a", spec, *options)

    def command(self, verb: str, *args: str | int) -> list[str]:
        """tap-ctl with this verb, on this disk."""
        return [str(program("tap-ctl", self._mode)), verb, "-p", str(self.pid), "-m", str(self.minor), *map(str, args)]

    def start(self, verb: str, *args: str | int) -> "subprocess.Popen[str]":
        """Without waiting for it."""
        return subprocess.Popen(self.command(verb, *args), env=self._env, stderr=subprocess.PIPE, text=True)

    def run(self, verb: str, *args: str | int) -> "subprocess.CompletedProcess[str]":
        """Whatever becomes of it."""
        return subprocess.run(
            self.command(verb, *args), env=self._env, capture_output=True, text=True, timeout=60, check=False
        )

    def ok(self, verb: str, *args: str | int) -> str:
        """The output of a verb that succeeds."""
        done = self.run(verb, *args)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def list_all(self, *args: str | int) -> "subprocess.CompletedProcess[str]":
        """tap-ctl list, not of this tapdisk alone."""
        return subprocess.run(
            [program("tap-ctl", self._mode), "list", *map(str, args)],
            env=self._env, capture_output=True, text=True, timeout=60, check=True,
        )

    def refused(self, verb: str, *args: str | int) -> str:
        """The message of a verb that fails."""
        done = self.run(verb, *args)
        assert done.returncode == 1, done.stderr
        return done.stderr.removeprefix("tap-ctl: ").rstrip("\n")

    def call(self, request: Mapping[str, object]) -> dict[str, object]:
        """The answer to one message of the control socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(self.directory / f"ctl{self.pid}"))
            client.send(json.dumps(request).encode())
            answer: dict[str, object] = json.loads(client.recv(65536))
        return answer

    def clean(self) -> None:
        """tap-ctl list of all there is, which removes what the dead have left."""
        self.list_all()

    def log(self) -> str:
        """What tapdisk has written to its standard error."""
        self._errors.seek(0)
        return self._errors.read()

    def kill(self) -> None:
        """As the kernel would."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """As it ends when its disk is removed."""
        self.ok("close", "-f")
        self.ok("detach")
        status = self.process.wait(timeout=60)
        assert status == 0, f"{status}: {self.log()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.process.poll() is None:
            self.end()
        else:
            self.kill()
            print(self.log())
        self._errors.close()
