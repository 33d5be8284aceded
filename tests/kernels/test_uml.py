# SPDX-License-Identifier: LGPL-2.1-only
"""The driver in user-mode Linux, with lockdep and debug objects: what calls it in bad ways, and servers that die under a load.

hostile.c is not for it: copy_from_user() there passes the edge of a page that may not be read.
"""

import random
from pathlib import Path

import pytest

from tests.lib import dmesg, uml
from tests.lib.toytap import HAMMER_LOG, STORM_LOG

SECONDS = 20


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uml.module(tmp_path_factory.mktemp("driver"))


def ran(driver: Path, script: str, *expected: str) -> str:
    """What a script that succeeds printed; the kernel has nothing to say but what is expected."""
    ended = uml.run(driver, script)
    assert ended.status == 0, f"{ended.output}\n{ended.log}"
    assert dmesg.findings(ended.output + ended.log, expected) == [], ended.log
    return ended.output


def test_a_storm_breaks_no_rule(driver: Path, toys: Path) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    output = ran(driver, f"truncate -s 64M /srv/a; {toys}/storm 9 /srv/a {SECONDS} {seed}", STORM_LOG)
    assert output.endswith("\nquiet\n"), output


def test_processes_that_come_and_go_break_no_rule(driver: Path, toys: Path) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    assert ran(driver, f"{toys}/hammer {SECONDS} {seed}", HAMMER_LOG).endswith("quiet\n")


# A file system on the disk; its server is killed under writes, and the next one goes on, five times.
LIFE = """
set -e
toy={toys}/toy-server
minor=$($toy alloc)
disk=/dev/xen/blktap-2/tapdev$minor
truncate -s 200M /srv/a
start() {{
	$toy serve $minor /srv/a {options} "$@" > /run/said & server=$!
	until grep -q ready /run/said; do sleep 0.1; done
}}
start
mkfs.ext4 -q -b 1024 $disk
mkdir /run/mnt && mount $disk /run/mnt
dd if=/dev/urandom of=/run/random bs=64k count=160 status=none
for turn in 1 2 3 4 5; do
	dd if=/run/random of=/run/mnt/$turn bs=64k conv=fsync status=none & writer=$!
	sleep 0.2
	kill -9 $server; wait $server || true
	start resume=1
	wait $writer
	cmp /run/random /run/mnt/$turn
done
umount /run/mnt
e2fsck -fn $disk > /dev/null 2>&1
mount $disk /run/mnt
for turn in 1 2 3 4 5; do cmp /run/random /run/mnt/$turn; done
umount /run/mnt
kill -TERM $server; wait $server
$toy free $minor
echo same
"""


@pytest.mark.parametrize("options", ["", "remap=1", "extents=1"], ids=["copy", "remap", "extents"])
def test_the_life_of_a_disk_breaks_no_rule(driver: Path, toys: Path, options: str) -> None:
    assert ran(driver, LIFE.format(toys=toys, options=options)).endswith("same\n")
