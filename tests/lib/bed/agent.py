#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-only
"""Runs in a bed: does what the host asks over the virtio-serial port `xenblk.agent` (frames.py).

One thread, one selector: commands run side by side, and their output goes out as it comes. Files are put and got
by the agent itself, since each fork costs some 50 ms under emulation; few imports (no dataclasses) for the same reason.
"""

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import frames

PORT_NAME = "xenblk.agent"
# A daemon that a command leaves behind may hold its pipes open: once the command has ended, wait no longer than
# this for output that is still on its way.
DRAIN_SECONDS = 0.3
# PUT and GET go in pieces, so that a large file does not hold up the output of a running command.
CHUNK = 256 * 1024


class Command:
    """A running command: its process, its open pipes and, once it has ended, when draining stops."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)
        self.pipes: dict[int, int] = {}
        self.deadline: float | None = None


def find_port() -> str:
    """The device node of the agent's port."""
    base = "/sys/class/virtio-ports"
    for _ in range(200):
        with contextlib.suppress(FileNotFoundError):
            for port in os.listdir(base):
                with open(f"{base}/{port}/name", encoding="ascii") as file:
                    if file.read().strip() == PORT_NAME and os.path.exists(f"/dev/{port}"):
                        return f"/dev/{port}"
        time.sleep(0.05)
    raise SystemExit(f"agent: no virtio-serial port named {PORT_NAME}")


class Agent:
    """Serves the port until it is closed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.decoder = frames.Decoder()
        self.commands: dict[int, Command] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(port, selectors.EVENT_READ, self.read_port)

    def send(self, job: int, kind: int, payload: bytes = b"") -> None:
        """Write one frame whole."""
        data = memoryview(frames.encode(job, kind, payload))
        while data:
            data = data[os.write(self.port, data) :]

    def send_json(self, job: int, kind: int, **values: object) -> None:
        """Write one frame with a JSON object."""
        self.send(job, kind, json.dumps(values).encode())

    def read_port(self) -> None:
        """Take what the host sent."""
        data = os.read(self.port, 65536)
        if not data:  # the host is not connected (yet)
            time.sleep(0.1)
            return
        for job, kind, payload in self.decoder.feed(data):
            try:
                self.handle(job, kind, payload)
            except (OSError, ValueError, KeyError) as error:
                self.send_json(job, frames.FAILED, message=str(error))

    def handle(self, job: int, kind: int, payload: bytes) -> None:
        """Do one request."""
        if kind == frames.RUN:
            self.run(job, json.loads(payload))
        elif kind == frames.PUT:
            self.put(job, payload)
        elif kind == frames.GET:
            self.get(job, json.loads(payload)["path"])
        elif kind == frames.STDIN:
            self.stdin(job, payload)
        elif kind == frames.KILL:
            if job in self.commands:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.commands[job].process.pid, signal.SIGKILL)
        else:
            raise ValueError(f"unknown request {kind}")

    def run(self, job: int, request: dict[str, object]) -> None:
        """Start a command in its own session, with /bin/sh."""
        extra = request.get("env")
        env = dict(os.environ)
        if isinstance(extra, dict):
            env.update(extra)
        process = subprocess.Popen(
            ["/bin/sh", "-c", str(request["command"])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/root",
            env=env,
        )
        assert process.stdin and process.stdout and process.stderr
        command = Command(process)
        self.commands[job] = command
        for pipe, kind in ((process.stdout, frames.OUT), (process.stderr, frames.ERR)):
            os.set_blocking(pipe.fileno(), False)
            command.pipes[pipe.fileno()] = kind
            self.watch(pipe.fileno(), functools.partial(self.relay, job, pipe.fileno()))
        self.watch(command.pidfd, lambda: self.ended(job))

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` when `fd` is readable."""
        self.selector.register(fd, selectors.EVENT_READ, callback)

    def relay(self, job: int, fd: int) -> None:
        """Pass on one piece of output."""
        command = self.commands[job]
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        if data:
            self.send(job, command.pipes[fd], data)
            return
        self.selector.unregister(fd)
        del command.pipes[fd]
        if command.deadline is not None and not command.pipes:
            self.finish(job)

    def ended(self, job: int) -> None:
        """The process is gone: output may still be in its pipes."""
        command = self.commands[job]
        self.selector.unregister(command.pidfd)
        os.close(command.pidfd)
        command.process.wait()
        command.deadline = time.monotonic() + DRAIN_SECONDS
        if not command.pipes:
            self.finish(job)

    def finish(self, job: int) -> None:
        """Report the exit status; a signal N is status 128 + N, as a shell has it."""
        command = self.commands.pop(job)
        for fd in command.pipes:
            self.selector.unregister(fd)
        for pipe in (command.process.stdin, command.process.stdout, command.process.stderr):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        code = command.process.returncode
        self.send_json(job, frames.DONE, status=code if code >= 0 else 128 - code)

    def stdin(self, job: int, payload: bytes) -> None:
        """Feed a command; it may have ended already."""
        command = self.commands.get(job)
        if command is None or command.process.stdin is None or command.process.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            if payload:
                command.process.stdin.write(payload)
                command.process.stdin.flush()
            else:
                command.process.stdin.close()

    def put(self, job: int, payload: bytes) -> None:
        """Write, or go on writing, a file."""
        head, _, data = payload.partition(b"\n")
        request = json.loads(head)
        path = request["path"]
        if not request["append"]:
            os.makedirs(os.path.dirname(path) or "/", exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if request["append"] else os.O_TRUNC)
        fd = os.open(path, flags, request["mode"])
        with open(fd, "wb") as file:
            os.fchmod(fd, request["mode"])
            file.write(data)
        self.send_json(job, frames.DONE, status=0)

    def get(self, job: int, path: str) -> None:
        """Send a file."""
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                self.send(job, frames.DATA, data)
        self.send_json(job, frames.DONE, status=0)

    def serve(self) -> None:
        """Never returns."""
        while True:
            waits = [c.deadline for c in self.commands.values() if c.deadline is not None]
            timeout = max(0.0, min(waits) - time.monotonic()) if waits else None
            for key, _ in self.selector.select(timeout):
                # an earlier callback of this round may have closed this one
                if key.fd in self.selector.get_map():
                    key.data()
            now = time.monotonic()
            for job, command in list(self.commands.items()):
                if command.deadline is not None and command.deadline <= now:
                    self.finish(job)


def main() -> None:
    """Open the port and serve it."""
    os.environ.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    os.environ.setdefault("HOME", "/root")
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    agent = Agent(os.open(find_port(), os.O_RDWR))
    with open("/proc/uptime", encoding="ascii") as file:
        uptime = float(file.read().split()[0])
    agent.send_json(0, frames.READY, kernel=os.uname().release, uptime=uptime, python=sys.version.split()[0])
    agent.serve()


if __name__ == "__main__":
    main()
