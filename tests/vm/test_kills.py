# SPDX-License-Identifier: LGPL-2.1-only
"""tapdisk is killed at random moments under a load: the disk's users see time. `make soak --part=kills` does more."""

import random

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.soak import killrun

KILLS = 5


@pytest.mark.parametrize("transport", killrun.TRANSPORTS, ids=[t.name for t in killrun.TRANSPORTS])
def test_a_load_does_not_notice_that_tapdisk_is_killed(beds: Beds, transport: killrun.Transport) -> None:
    seed = random.randrange(1 << 31)
    with tapdisks.clean(beds(xen=False)) as bed:
        counts = killrun.run(bed, transport, KILLS, seed)
    print(f"seed {seed}: {counts}")
    assert counts.losses == ()
    assert counts.kills == KILLS and counts.held > 0
