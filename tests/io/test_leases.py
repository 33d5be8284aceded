# SPDX-License-Identifier: LGPL-2.1-only
"""Somebody has a lease on an image, as the kernel's NFS server has for a client that was given a delegation."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.tapctl import Served
from tests.lib.vhdutil import ok, open_refused

pytestmark = pytest.mark.io

HOLDER = """
import fcntl, os, signal, sys, time
path, kind, seconds = sys.argv[1:]
fd = os.open(path, os.O_RDONLY if kind == "F_RDLCK" else os.O_RDWR)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
fcntl.fcntl(fd, fcntl.F_SETLEASE, getattr(fcntl, kind))
print("has it", flush=True)
signal.sigwait({signal.SIGIO})
print("is asked", flush=True)
time.sleep(float(seconds))
"""
GIVEN_UP, KEPT = 0.5, 100.0


@contextlib.contextmanager
def leased(path: Path, kind: str, seconds: float) -> Iterator[None]:
    """A process that has a lease on it, and gives it up so long after it is asked to; it is, meanwhile."""
    argv = [sys.executable, "-c", HOLDER, str(path), kind, str(seconds)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "has it\n"
            yield
        finally:
            holder.kill()
        assert holder.stdout.read() == "is asked\n"


@pytest.mark.parametrize("kind", ["vhd", "aio"])
def test_an_image_is_opened_when_its_lease_is_given_up(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    if kind == "vhd":
        ok("create", "-n", path, "-s", 8)
    else:
        path.write_bytes(bytes(8 << 20))
    begun = time.monotonic()
    with leased(path, "F_RDLCK", GIVEN_UP), Served(tmp_path, f"{kind}:{path}"):
        assert time.monotonic() - begun > GIVEN_UP


@pytest.mark.parametrize("kind", ["vhd", "aio"])
def test_a_lease_that_is_kept_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    ok("create", "-n", path, "-s", 8)
    with leased(path, "F_RDLCK", KEPT):
        said = open_refused(path, kind=kind)
    assert str(path) in said and "has a lease on it and does not give it up" in said


def test_a_parent_is_not_written_while_its_child_may_be(tmp_path: Path) -> None:
    """Another host writes the child, which nobody here can read; and the file system keeps no marks."""
    parent, child = tmp_path / "parent.vhd", tmp_path / "child.vhd"
    ok("create", "-n", parent, "-s", 8)
    ok("snapshot", "-n", child, "-p", parent)
    os.removexattr(parent, "user.xenblk.children")
    with leased(child, "F_WRLCK", KEPT):
        said = open_refused(parent)
    assert f"{parent}: looking for its children: {child}: a client of this NFS server" in said
