# SPDX-License-Identifier: LGPL-2.1-only
"""The host's side of a bed's agent: jobs run side by side over one connection."""

import contextlib
import itertools
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.lib.bed import frames

PUT_CHUNK = 512 * 1024


class ChannelLost(Exception):
    """The bed ended, crashed or was stopped while a job was waiting for it."""


class JobFailed(Exception):
    """The agent could not do what it was asked."""


@dataclass
class Job:
    """One request and what came back so far. `output` has stdout and stderr in the order of arrival."""

    number: int
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    output: bytearray = field(default_factory=bytearray)
    data: bytearray = field(default_factory=bytearray)
    relay: Any = None
    done: dict[str, Any] | None = None
    error: str | None = None

    @property
    def over(self) -> bool:
        """Has it ended, one way or the other?"""
        return self.done is not None or self.error is not None


class Channel:
    """Listens on `path` for QEMU, then sends jobs and takes their answers in a thread."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(1)
        self._connection: socket.socket | None = None
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._lost: str | None = None
        self._closing = False
        self.hello: dict[str, Any] | None = None
        threading.Thread(target=self._serve, daemon=True, name="bed-agent").start()

    def _serve(self) -> None:
        reason = "the bed ended"
        try:
            connection, _ = self._listener.accept()
            self._connection = connection
            decoder = frames.Decoder()
            while data := connection.recv(1 << 16):
                for job, kind, payload in decoder.feed(data):
                    self._take(job, kind, payload)
        except (OSError, frames.FrameError) as error:
            reason = f"the bed's agent: {error}"
        self.lose(reason)

    def _take(self, number: int, kind: int, payload: bytes) -> None:
        with self._changed:
            job = self._jobs.get(number)
            if kind == frames.READY:
                self.hello = json.loads(payload)
            elif job is None:
                return  # of a job that nobody waits for any more
            elif kind in (frames.OUT, frames.ERR):
                (job.stdout if kind == frames.OUT else job.stderr).extend(payload)
                job.output += payload
                if job.relay is not None:
                    job.relay(kind == frames.ERR, payload)
            elif kind == frames.DATA:
                job.data += payload
            elif kind == frames.DONE:
                job.done = json.loads(payload)
            elif kind == frames.FAILED:
                job.error = json.loads(payload)["message"]
            self._changed.notify_all()

    def lose(self, reason: str) -> None:
        """Wake all who wait: nothing more will come. The first reason stays."""
        with self._changed:
            if self._lost is None:
                self._lost = reason
            self._changed.notify_all()

    def _send(self, job: Job, kind: int, payload: bytes) -> None:
        if self._lost is not None or self._connection is None:
            raise ChannelLost(self._lost or "the bed's agent is not ready")
        try:
            with self._sending:
                self._connection.sendall(frames.encode(job.number, kind, payload))
        except OSError as error:
            raise ChannelLost(str(error)) from error

    def _start(self, relay: Any = None) -> Job:
        with self._changed:
            job = Job(next(self._numbers), relay=relay)
            self._jobs[job.number] = job
        return job

    def wait_ready(self, timeout: float) -> bool:
        """Wait for the agent. False if the time is up; ChannelLost if the bed ended before."""
        with self._changed:
            self._changed.wait_for(lambda: self.hello is not None or self._lost is not None, timeout)
            if self._lost is not None:
                raise ChannelLost(self._lost)
            return self.hello is not None

    def run(self, command: str, env: dict[str, str], relay: Any = None) -> Job:
        """Start a command for /bin/sh. `relay(is_stderr, bytes)` sees the output as it comes."""
        job = self._start(relay)
        self._send(job, frames.RUN, json.dumps({"command": command, "env": env}).encode())
        return job

    def stdin(self, job: Job, data: bytes) -> None:
        """Feed a running command; empty data ends its input."""
        self._send(job, frames.STDIN, data)

    def kill(self, job: Job) -> None:
        """Kill a command and its process group."""
        self._send(job, frames.KILL, b"")

    def wait(self, job: Job, timeout: float) -> bool:
        """Wait for the end of a job. False if the time is up; ChannelLost or JobFailed if it can't end well."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(
                lambda: job.over or self._lost is not None, max(0.0, deadline - time.monotonic())
            )
            if job.over:
                self._jobs.pop(job.number, None)
            if job.error is not None:
                raise JobFailed(job.error)
            if job.done is None and self._lost is not None:
                raise ChannelLost(self._lost)
            return job.done is not None

    def put(self, path: str, data: bytes, mode: int, timeout: float) -> None:
        """Write a file, in pieces."""
        view = memoryview(data)
        first = True
        while first or view:
            job = self._start()
            head = json.dumps({"path": path, "mode": mode, "append": not first}).encode()
            self._send(job, frames.PUT, head + b"\n" + bytes(view[:PUT_CHUNK]))
            view = view[PUT_CHUNK:]
            first = False
            if not self.wait(job, timeout):
                raise ChannelLost(f"no answer to put {path} in {timeout:.0f} s")

    def get(self, path: str, timeout: float) -> bytes:
        """Read a file whole."""
        job = self._start()
        self._send(job, frames.GET, json.dumps({"path": path}).encode())
        if not self.wait(job, timeout):
            raise ChannelLost(f"no answer to get {path} in {timeout:.0f} s")
        return bytes(job.data)

    def close(self) -> None:
        """End the connection."""
        self.lose("the bed was stopped")
        for end in (self._connection, self._listener):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
