# SPDX-License-Identifier: LGPL-2.1-only
"""A device whose server does not come back, or hangs: its requests fail when that is asked for, and it can be removed."""

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.toytap import EIO, SERVER, Tap
from tests.lib.vm import Process

ON_BOTH_KERNELS = pytest.mark.parametrize(
    "release", [12, pytest.param(13, marks=pytest.mark.slow)], ids="debian{}".format, scope="session"
)
FAILED = r"blktap2 blktap\d+: no server: \d+ requests failed, and so do new ones until there is one$"
READ = "dd if={} of=/dev/null bs=4k count=1 iflag=direct"


def held_read(tap: Tap) -> Process:
    """A read that its server has, and does not answer."""
    reader = tap.bed.popen(READ.format(tap.device))
    tap.bed.wait_for(f"test $(cat {tap.sysfs}/counters/submitted) -ge 1", 60, 0.2)
    return reader


@ON_BOTH_KERNELS
def test_requests_fail_after_the_time_that_was_set_until_a_server_comes(tap: Tap) -> None:
    tap.bed.expect_log(FAILED)
    tap.start(hold=1)
    tap.bed.run(f"echo 300 > {tap.sysfs}/dead_timeout")
    reader = held_read(tap)
    tap.kill()
    tap.resume(hold=1)
    # not while there is a server
    tap.bed.run(f"echo 1 > {tap.sysfs}/dead_timeout; sleep 2")
    assert not reader.ended
    tap.kill()
    assert EIO in reader.wait(check=False).stderr
    assert tap.count("expired") == 1 and tap.attribute("state") == "quiesced"
    assert EIO in tap.bed.run(READ.format(tap.device), check=False, timeout=20).stderr
    assert "no server: 1 requests failed" in tap.bed.dmesg()
    tap.resume()
    tap.bed.run(READ.format(tap.device))
    tap.bed.run(f"echo 0 > {tap.sysfs}/dead_timeout")
    tap.kill()
    reader = tap.bed.popen(READ.format(tap.device))
    tap.bed.run("sleep 3")
    assert not reader.ended
    # the time counts from now on
    tap.bed.run(f"echo 1 > {tap.sysfs}/dead_timeout")
    assert EIO in reader.wait(check=False).stderr


def test_the_time_counts_from_the_servers_end_though_it_is_set_once_more(tap: Tap) -> None:
    """As the next tapdisk does, which may end as well."""
    tap.bed.expect_log(FAILED)
    tap.start(hold=1)
    tap.bed.run(f"echo 10 > {tap.sysfs}/dead_timeout")
    reader = held_read(tap)
    tap.kill()
    tap.bed.run(f"sleep 6; echo 10 > {tap.sysfs}/dead_timeout")
    tap.bed.wait_for(f"test $(cat {tap.sysfs}/counters/expired) -ge 1", 8, 0.2)
    assert EIO in reader.wait(check=False).stderr


def test_what_is_held_can_be_failed_at_once(tap: Tap) -> None:
    tap.bed.expect_log(FAILED)
    tap.start(hold=1)
    refused = tap.bed.run(f"tap-ctl fail -m {tap.minor}", check=False)
    assert refused.status == 1 and "a tapdisk serves it" in refused.stderr
    reader = held_read(tap)
    tap.kill()
    tap.bed.run(f"tap-ctl fail -m {tap.minor}")
    assert EIO in reader.wait(check=False).stderr
    tap.resume()
    tap.bed.run(READ.format(tap.device))
    assert tap.bed.run(f"echo 99999999999 > {tap.sysfs}/dead_timeout", check=False).status != 0
    assert tap.bed.run(f"echo 2 > {tap.sysfs}/fail", check=False).status != 0


def test_ids_of_minors_are_not_used_again(tap: Tap) -> None:
    first = int(tap.attribute("id"))
    tap.bed.run(f"{SERVER} free {tap.minor}")
    tap.bed.wait_for("modprobe -r blktap", 30, 0.2)
    tap.bed.run(f"modprobe blktap dead_timeout=9 && {SERVER} alloc")
    assert int(tap.attribute("id")) > first and tap.attribute("dead_timeout") == "9"
    tap.bed.run("echo 0 > /sys/module/blktap/parameters/dead_timeout")


@ON_BOTH_KERNELS
def test_a_minor_is_freed_although_its_server_hangs(tap: Tap) -> None:
    """The server finds out when it goes on; nothing of it, or of the disk, stays when it ends."""
    tap.start(hold=1)
    reader = held_read(tap)
    task = tap.attribute("task")
    tap.bed.run(f"kill -STOP {task}")
    assert tap.bed.run(f"tap-ctl free -m {tap.minor}", check=False).status == 1
    tap.bed.run(f"tap-ctl free -m {tap.minor} -f", timeout=30)
    assert EIO in reader.wait(check=False).stderr
    assert tap.bed.run(f"test -e {tap.device} -o -e {tap.sysfs}", check=False).status == 1
    # the number is free for another one, while the old one's ring is still open
    tap.bed.run(f"{SERVER} alloc && {SERVER} free {tap.minor}")
    assert tap.bed.run("modprobe -r blktap", check=False).status == 1
    tap.bed.run(f"kill -CONT {task}")
    assert tap.server is not None
    tap.bed.run(f"kill -9 {task}", check=False)
    tap.server.wait(check=False)
    tap.server = None
    tap.bed.wait_for("modprobe -r blktap && modprobe blktap", 30, 0.2)


def test_a_disk_is_destroyed_while_its_tapdisk_is_stuck_in_the_kernel(beds: Beds) -> None:
    """kill -9 does not end it, and it keeps the image; its device is gone at once, and it when its storage is back."""
    with tapdisks.clean(beds(xen=False)) as bed, tapdisks.configured(bed, "engine=posix"):
        bed.run("modprobe -a blktap loop dm-mod; truncate -s 16M /srv/stuck.img")
        loop = bed.run("losetup -f --show /srv/stuck.img").stdout.strip()
        bed.run("dmsetup create stuck", stdin=f"0 32768 linear {loop} 0\n".encode())
        image = "/dev/" + bed.run("dmsetup info -c --noheadings -o blkdevname stuck").stdout.strip()
        try:
            device = tapdisks.create(bed, f"aio:{image}")
            [disk] = tapdisks.served(bed)
            bed.run("dmsetup suspend --noflush stuck")
            reader = bed.popen(READ.format(device))
            bed.wait_for(f"grep -l '^State:.D' /proc/{disk.pid}/task/*/status", 30, 0.1)
            bed.run(f"tap-ctl destroy -p {disk.pid} -m {disk.minor} -f -t 2", timeout=60)
            assert EIO in reader.wait(check=False).stderr
            assert bed.run(f"test -e {device}", check=False).status == 1
            refused = bed.run(f"tap-ctl create -a aio:{image} --wait=5", check=False, timeout=60)
            assert refused.status == 1
            bed.run("dmsetup resume stuck")
            bed.wait_for(f"! kill -0 {disk.pid} 2>/dev/null", 30, 0.2)
            bed.wait_for("! pgrep tapdisk", 30, 0.2)
            bed.run("tap-ctl list")
        finally:
            bed.run(f"dmsetup resume stuck; dmsetup remove --retry stuck; losetup -d {loop}; rm /srv/stuck.img")
