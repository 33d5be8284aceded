# SPDX-License-Identifier: LGPL-2.1-only
"""The cache of the test bed: directories that are made once, whole or not at all, and named by their inputs."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

STALE_SECONDS = 7 * 24 * 3600
# of one name, the last used: work on what they are made of makes many a day, of half a GiB each
KEPT = 3
HEARTBEAT_SECONDS = 10.0


def root() -> Path:
    """The cache directory, made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(base) / "xenblk"
    path.mkdir(parents=True, exist_ok=True)
    return path


def key(inputs: object, files: list[Path]) -> str:
    """A short hash of JSON-able inputs and of the contents of the files that make the product."""
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock that other processes with the same cache respect."""
    with open(root() / f"{name}.lock", "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that makes {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def product(name: str, product_key: str, make: Callable[[Path], None]) -> Path:
    """The directory `name-product_key`. If it is not there, `make` fills a temporary one that is then renamed."""
    path = root() / f"{name}-{product_key}"
    if not path.exists():
        with locked(name):
            if not path.exists():
                _make(name, path, make)
    os.utime(path)
    return path


def _make(name: str, path: Path, make: Callable[[Path], None]) -> None:
    for left_over in root().glob(f".making-{name}-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f".making-{name}-", dir=root()))
    try:
        os.chmod(aside, 0o755)
        make(aside)
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    products = [other for other in root().glob(f"{name}-*") if other.is_dir() and other != path]
    products.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    for place, other in enumerate(products, start=2):
        if place > KEPT or time.time() - other.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(other, ignore_errors=True)


def say(text: str) -> None:
    """One line of progress, past pytest's capture of stderr."""
    stream = sys.__stderr__
    if stream is not None:
        print(f"bed: {text}", file=stream, flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a step, show now and then that it goes on, and say how long it took."""
    say(f"{text} ...")
    start = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            say(f"{text} ... {time.monotonic() - start:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    say(f"{text}: {time.monotonic() - start:.1f} s")
