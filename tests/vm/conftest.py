# SPDX-License-Identifier: LGPL-2.1-only
"""A bed with the driver and its toy server."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.beds import BedPool, Beds
from tests.lib.qemu import BedSpec
from tests.lib.toytap import Tap, prepare
from tests.lib.vm import Bed

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the toy server and what calls the driver in bad ways."""
    out = tmp_path_factory.mktemp("toys")
    subprocess.run(["make", "-s", "-C", REPOSITORY / "kernel-patches", "toy", f"OUT={out}"], check=True)
    return out


@pytest.fixture(scope="module", autouse=True)
def no_leaks(bed_pool: BedPool) -> Iterator[None]:
    """With a kernel that has checkers in it: what a file of tests has left in memory fails it."""
    yield
    leaks = bed_pool.leaks()
    if leaks:
        pytest.fail("\n".join(leaks), pytrace=False)


@pytest.fixture(scope="session")
def release() -> int:
    """The bed's Debian release, for tests that are not ON_BOTH_KERNELS."""
    return BedSpec(xen=False).release


@pytest.fixture
def bed(beds: Beds, toys: Path, release: int) -> Bed:
    return prepare(beds(release=release, xen=False), toys)


@pytest.fixture
def tap(bed: Bed) -> Iterator[Tap]:
    tap = Tap(bed)
    yield tap
    tap.close()
