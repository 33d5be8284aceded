# SPDX-License-Identifier: LGPL-2.1-only
"""Fixtures of the unit tests."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

import xenblk
from tests.lib import blockscript, bridge, builder, xlhost
from tests.lib.diskoracle import oracle
from tests.lib.release import RELEASES
from xenblk import libxl

# How long one example takes says nothing on a busy machine.
settings.register_profile("unit", deadline=None, print_blob=True)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def libxl_binding() -> None:
    """Lets `xenblk.libxl` find its compiled half, which a source tree doesn't have."""
    directory = str(bridge.binding())
    if directory not in xenblk.__path__:
        xenblk.__path__.append(directory)


@pytest.fixture(scope="module", params=sorted(RELEASES), ids=lambda number: f"debian{number}")
def grammar(request: pytest.FixtureRequest, libxl_binding: None) -> Iterator[int]:
    """The release whose libxlutil reads the specs; its number."""
    number: int = request.param
    if not builder.foreign(number):
        yield number
        return
    with mock.patch.object(libxl, "parse_disk", oracle(number).parse_disk):
        yield number


@pytest.fixture(scope="session")
def xenblk_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command xenblk, as it is installed."""
    return bridge.stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture
def host(tmp_path: Path, xenblk_command: Path) -> xlhost.Host:
    """xenblk with an image and a program in xl's place."""
    return xlhost.make(tmp_path, xenblk_command)


@pytest.fixture
def dom0(tmp_path: Path) -> Iterator[blockscript.Dom0]:
    """The block script, and what it talks to."""
    with blockscript.running(tmp_path) as made:
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file that no real tapdisk opens."""
    path = tmp_path / "a.vhd"
    path.write_bytes(b"x" * 512)
    return path
