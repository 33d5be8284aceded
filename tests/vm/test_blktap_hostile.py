# SPDX-License-Identifier: LGPL-2.1-only
"""The kernel driver under a server that means harm: it says what is wrong, and no other disk notices.

After each test the bed's kernel log is judged.
"""

import random

import pytest

from tests.lib.toytap import HOSTILE, SERVER, STORM, STORM_LOG, Tap
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
    bed.wait_for("modprobe -r blktap", 30, 0.2)
    bed.run("modprobe blktap")


@ON_BOTH_KERNELS
def test_a_registered_file_that_loses_direct_io_is_left_to_the_server(tap: Tap) -> None:
    """By O_APPEND the kernel's own writes would land at the end of the file."""
    tap.start(extents=1, append=1)
    tap.bed.run(f"dd if=/root/random of={tap.device} bs=64k oflag=direct status=none")
    assert tap.bed.run(f"stat -c %s {tap.file}").stdout == f"{400 << 20}\n"
    tap.bed.run(f"cmp -n 16777216 /root/random {tap.file}; cmp -n 16777216 /root/random {tap.device}")
    assert tap.count("direct_writes") == 0


def test_a_file_on_the_disk_itself_is_refused(tap: Tap) -> None:
    """The kernel would wait for itself. A server registers it while it is mounted."""
    bed = tap.bed
    tap.start()
    bed.run(f"mkfs.ext4 -q {tap.device} && mount {tap.device} /mnt && truncate -s 1M /mnt/loop && sync")
    try:
        tap.kill()
        result = bed.run(f"{SERVER} serve {tap.minor} {tap.file} resume=1 extents=1 place=/mnt/loop", check=False)
        assert "ADD_FILE /mnt/loop: Invalid argument" in result.stderr
        tap.resume()
    finally:
        bed.run("umount /mnt")


@ON_BOTH_KERNELS
def test_a_storm_on_one_disk_leaves_another_alone(tap: Tap) -> None:
    """Rings scribbled over under load, random calls, bad files, deaths in any of them: kernel-patches/tests/storm.c."""
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    bed = tap.bed
    # of its server, and of the reads and writes that it fails
    bed.expect_log(STORM_LOG)
    bed.run("truncate -s 64M /srv/storm.img")
    tap.start(extents=1)
    load = tap.load(seed)
    storm = bed.popen(f"{STORM} 9 /srv/storm.img 20 {seed}")
    load.wait(timeout=300)
    assert storm.wait(timeout=300, check=False).stdout.endswith("\nquiet\n"), storm.output()
    assert tap.count("direct_failed") == 0 and tap.count("refused") == 0
    tap.remove()
    bed.run(f"rm /srv/storm.img; echo 3 > /proc/sys/vm/drop_caches; test ! -e {tap.device}")
