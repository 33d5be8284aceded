# SPDX-License-Identifier: LGPL-2.1-only
"""Fixtures of the tests on Xen."""

from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.vm import Bed


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with nothing of tapdisk in it, before and after."""
    with tapdisks.clean(beds()) as bed:
        yield bed
