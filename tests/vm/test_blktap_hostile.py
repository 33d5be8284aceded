# SPDX-License-Identifier: LGPL-2.1-only
"""The kernel driver under a server that means harm: it says what is wrong, and no other disk notices.

After each test the bed's kernel log is judged.
"""

import random

import pytest

from tests.lib.toytap import HOSTILE, STORM, Tap
from tests.lib.vm import Bed

# Debian 12 has Linux 6.1, 13 has 6.12
ON_BOTH_KERNELS = pytest.mark.parametrize(
    "release", [12, pytest.param(13, marks=pytest.mark.slow)], ids="debian{}".format, scope="session"
)


@ON_BOTH_KERNELS
def test_each_wrong_call_has_the_error_that_the_header_gives(bed: Bed) -> None:
    """Arguments, order of calls, files and extents, one thing wrong at a time: kernel-patches/tests/hostile.c."""
    bed.run("truncate -s 1M /srv/hostile.img")
    result = bed.run(f"{HOSTILE} 7 /srv/hostile.img; rm /srv/hostile.img", check=False)
    assert result.stdout.endswith(" calls, 0 wrong\n"), result.output
    assert int(result.stdout.split()[0]) > 1000
    bed.run("modprobe -r blktap && modprobe blktap")


@ON_BOTH_KERNELS
def test_a_storm_on_one_disk_leaves_another_alone(tap: Tap) -> None:
    """Rings scribbled over under load, random calls, bad files, deaths in any of them: kernel-patches/tests/storm.c."""
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    bed = tap.bed
    # of its server, and of the reads and writes that it fails
    bed.expect_log(r"blktap2 blktap9: (?:completion refused|[cs]q_\w+ of task|the buffer of task)")
    bed.run("truncate -s 64M /srv/storm.img")
    tap.start(extents=1)
    load = tap.load(seed)
    storm = bed.popen(f"{STORM} 9 /srv/storm.img 20 {seed}")
    load.wait(timeout=300)
    assert storm.wait(timeout=300, check=False).stdout.endswith("\nquiet\n"), storm.output()
    assert tap.count("direct_failed") == 0 and tap.count("refused") == 0
    tap.remove()
    bed.run(f"rm /srv/storm.img; echo 3 > /proc/sys/vm/drop_caches; test ! -e {tap.device}")
