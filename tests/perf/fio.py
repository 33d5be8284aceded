# SPDX-License-Identifier: LGPL-2.1-only
"""The client: fio's NBD engine, its command line and its JSON."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class FioError(Exception):
    """fio failed, or its output is not what fio prints."""


@dataclass(frozen=True)
class Pattern:
    """What a client does. size of a transfer in bytes; depth is how many are in flight."""

    name: str
    rw: str
    size: int
    depth: int
    text: str

    @property
    def writes(self) -> bool:
        """Whether it writes; a pattern does only one of both."""
        return "write" in self.rw

    @property
    def sequential(self) -> bool:
        """Whether MB/s is the figure of interest."""
        return not self.rw.startswith("rand")


PATTERNS = {
    pattern.name: pattern
    for pattern in (
        Pattern("rr1", "randread", 4096, 1, "4k random read QD 1"),
        Pattern("rw1", "randwrite", 4096, 1, "4k random write QD 1"),
        Pattern("rr32", "randread", 4096, 32, "4k random read QD 32"),
        Pattern("rw32", "randwrite", 4096, 32, "4k random write QD 32"),
        Pattern("sr", "read", 1 << 20, 4, "1 MiB sequential read QD 4"),
        Pattern("sw", "write", 1 << 20, 4, "1 MiB sequential write QD 4"),
    )
}


@dataclass(frozen=True)
class FioResult:
    """One run as fio saw it. Latencies in us, cpu in CPUs (1.0: one core busy)."""

    ios: int
    bytes: int
    seconds: float
    mean_us: float
    p99_us: float
    max_us: float
    cpu: float


def nbd_uri(sock: Path) -> str:
    """The URI of the unnamed export on a unix socket."""
    return f"nbd+unix:///?socket={sock}"


def command(
    pattern: Pattern,
    target: list[str],
    *,
    size: int,
    seed: int,
    milliseconds: int = 0,
    ios: int = 0,
    block: int = 0,
) -> list[str]:
    """A run of a time, or of a number of requests, over the first `size` bytes of the disk."""
    argv = [
        "fio",
        "--name=bench",
        *target,
        f"--rw={pattern.rw}",
        f"--bs={block or pattern.size}",
        f"--iodepth={pattern.depth}",
        f"--size={size}",
        f"--randseed={seed}",
        "--norandommap=1",
        "--thread",
        "--percentile_list=50:99:99.9",
        "--output-format=json",
    ]
    if ios:
        # fio ends at the first of both limits, so the bytes must not be the first
        return [*argv, f"--number_ios={ios}", f"--io_size={ios * (block or pattern.size)}"]
    return [*argv, "--time_based", f"--runtime={milliseconds}ms"]


def by_nbd(sock: Path) -> list[str]:
    """fio's options for a server on a unix socket."""
    return ["--ioengine=nbd", f"--uri={nbd_uri(sock)}"]


def by_file(path: Path) -> list[str]:
    """fio's options for the file itself: what the medium can do without a server."""
    name = str(path).replace(":", "\\:")
    return ["--ioengine=io_uring", "--direct=1", f"--filename={name}"]


def parse(text: str) -> FioResult:
    """Fio's JSON of one job that only reads or only writes."""
    try:
        document: dict[str, Any] = json.loads(text[text.index("{") :])
        job = document["jobs"][0]
        if job["error"]:
            raise FioError(f"fio: the job ended with error {job['error']}")
        side = max((job["read"], job["write"]), key=lambda part: int(part["total_ios"]))
        if not side["total_ios"]:
            raise FioError("fio: no request was completed")
        latency = side["clat_ns"]
        return FioResult(
            ios=int(side["total_ios"]),
            bytes=int(side["io_bytes"]),
            seconds=max(float(side["runtime"]), 1.0) / 1e3,
            mean_us=float(latency["mean"]) / 1e3,
            p99_us=float(latency["percentile"]["99.000000"]) / 1e3,
            max_us=float(latency["max"]) / 1e3,
            cpu=(float(job["usr_cpu"]) + float(job["sys_cpu"])) / 100.0,
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FioError(f"fio: output not understood: {error!r}: {text[:200]!r}") from error


def run(argv: list[str], output: Path, timeout: float = 120.0) -> FioResult:
    """Run fio; argv may have something in front of fio. Raises FioError."""
    output.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [*argv, f"--output={output}"], capture_output=True, timeout=timeout, check=False, cwd=output.parent
        )
    except subprocess.TimeoutExpired as error:
        raise FioError(f"fio: not finished after {timeout:.0f} s: the server does not answer") from error
    said = (done.stderr + done.stdout).decode(errors="replace").strip()
    if done.returncode != 0 or not output.exists():
        text = output.read_text() if output.exists() else ""
        raise FioError(f"fio: exit status {done.returncode}: {said or text[:500]}")
    return parse(output.read_text())
