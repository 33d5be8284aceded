# SPDX-License-Identifier: LGPL-2.1-only
"""Running vhd-util so that a sanitizer's finding is no ordinary failure."""

import os
import subprocess
from pathlib import Path

from tests.lib.programs import program

FOUND = 99
"""The exit status of a program in which a sanitizer found a fault."""

Result = subprocess.CompletedProcess[bytes]


def run(*args: str | Path | int, config: Path | None = None, timeout: float = 120) -> Result:
    """vhd-util with these arguments, whatever its exit status; text is bytes."""
    env = dict(os.environ, XENBLK_CONFIG=str(config) if config else "/nonexistent/xenblk-config")
    for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS"):
        env[name] = f"exitcode={FOUND}:allocator_may_return_null=1"
    result = subprocess.run(
        [program("vhd-util"), *map(str, args)], env=env, capture_output=True, timeout=timeout, check=False
    )
    assert result.returncode not in (FOUND, -6, -11), result.stderr.decode(errors="replace")
    return result


def ok(*args: str | Path | int, config: Path | None = None) -> str:
    """The output of vhd-util, which must succeed and print nothing on stderr."""
    result = run(*args, config=config)
    assert (result.returncode, result.stderr) == (0, b""), result.stderr.decode(errors="replace")
    return result.stdout.decode()


def fails(*args: str | Path | int, status: int = 1, config: Path | None = None) -> str:
    """The message of vhd-util, which must be one line and come with this exit status."""
    result = run(*args, config=config)
    text = result.stderr.decode(errors="replace")
    assert result.returncode == status, f"{result.returncode}: {text}"
    lines = text.splitlines()
    assert len(lines) == 1 and lines[0].startswith("vhd-util: "), text
    return lines[0].removeprefix("vhd-util: ")


def content(path: Path, *, config: Path | None = None) -> bytes:
    """The whole disk as vhd-util reads it through the chain."""
    size = int(ok("query", "-n", path, "--json", config=config).split('"virtual_size": ')[1].split(",")[0])
    result = run("read", "-n", path, "-R", 0, "-c", size, config=config)
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    return result.stdout


def open_refused(path: Path, *, kind: str = "vhd", readonly: bool = False) -> str:
    """The message with which tapdisk's driver refuses to open the image."""
    argv = [str(program("tests/tool-disk")), *(["--readonly"] if readonly else []), f"{kind}:{path}"]
    result = subprocess.run(argv, input=b"", capture_output=True, timeout=120, check=False)
    assert result.returncode == 1, result.stderr.decode(errors="replace")
    return result.stderr.decode(errors="replace").strip()
