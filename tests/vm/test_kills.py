# SPDX-License-Identifier: LGPL-2.1-only
"""tapdisk is killed at random moments under a load: the disk's users see time. `make soak --part=kills` does more."""

import random

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.soak import killrun
from tests.soak.killrun import Transport

KILLS = 10
SLOW_KILLS = 6


def killed(beds: Beds, transport: Transport, slow: bool) -> killrun.Counts:
    """What came of the kills, none of which anybody may have seen."""
    seed = random.randrange(1 << 31)
    with tapdisks.clean(beds(release=transport.release, xen=False)) as bed:
        counts = killrun.run(bed, transport, SLOW_KILLS if slow else KILLS, seed, slow)
    print(f"seed {seed}: {counts}")
    assert counts.losses == ()
    assert counts.kills == (SLOW_KILLS if slow else KILLS) and counts.held > 0
    return counts


@pytest.mark.parametrize(
    "transport",
    [pytest.param(transport, marks=pytest.mark.deep if transport in killrun.ON_13 else ()) for transport in killrun.ALL],
    ids=[transport.name for transport in killrun.ALL],
)
def test_a_load_does_not_notice_that_tapdisk_is_killed(beds: Beds, transport: Transport) -> None:
    counts = killed(beds, transport, slow=False)
    assert (counts.direct > 0) == ("kernel_io=yes" in transport.settings)


@pytest.mark.parametrize(
    "transport",
    [killrun.TRANSPORTS[0], pytest.param(killrun.TRANSPORTS[1], marks=pytest.mark.deep)],
    ids=[transport.name for transport in killrun.TRANSPORTS],
)
def test_what_a_killed_tapdisk_has_under_way_comes_before_the_next_one(beds: Beds, transport: Transport) -> None:
    """Its disk takes its time: the kernel keeps the dead one until then, or the next one has to wait for its lock; what the kernel
    does by itself ends without either."""
    counts = killed(beds, transport, slow=True)
    assert counts.kept > 0 or counts.fenced > 0 or counts.outlived > 0
