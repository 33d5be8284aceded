# SPDX-License-Identifier: LGPL-2.1-only
"""The bed itself, without Xen: commands, files, and what happens when things go wrong in it."""

import os
import re
import time
from pathlib import Path

import pytest

from tests.lib import stuck
from tests.lib.accel import accelerator
from tests.lib.beds import Beds
from tests.lib.qemu import Disk
from tests.lib.vm import BedLost, CommandFailed, CommandTimeout


def test_a_command_gives_back_its_status_and_both_streams(beds: Beds) -> None:
    bed = beds(xen=False)
    result = bed.run("echo out; echo err >&2; exit 3", check=False)
    assert (result.status, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert sorted(result.output.split()) == ["err", "out"]


def test_a_failed_command_raises_with_its_output(beds: Beds) -> None:
    with pytest.raises(CommandFailed, match=r"status 2 from: .*\n(.*\n)*no such thing"):
        beds(xen=False).run("echo no such thing >&2; exit 2")


def test_death_by_a_signal_is_status_128_plus_its_number(beds: Beds) -> None:
    assert beds(xen=False).run("kill -9 $$", check=False).status == 137


def test_files_go_in_and_out_unchanged(beds: Beds) -> None:
    bed = beds(xen=False)
    data = os.urandom(3_000_001)
    bed.put("/srv/put-get/data", data, mode=0o600)
    assert bed.get("/srv/put-get/data") == data
    assert bed.run("stat -c %a,%s /srv/put-get/data").stdout == f"600,{len(data)}\n"
    bed.put("/srv/put-get/data", b"")
    assert bed.get("/srv/put-get/data") == b""


def test_standard_input_reaches_the_command(beds: Beds) -> None:
    assert beds(xen=False).run("cat", stdin=b"one\ntwo\n").stdout == "one\ntwo\n"


def test_a_daemon_that_keeps_the_pipes_open_does_not_hold_up_the_result(beds: Beds) -> None:
    bed = beds(xen=False)
    start = time.monotonic()
    result = bed.run("sleep 300 & echo $!")
    assert time.monotonic() - start < 60
    bed.run(f"kill {int(result.stdout)}")


def test_linux_does_not_use_cmpxchg16b_where_it_is_emulated(beds: Beds) -> None:
    bed = beds(xen=False)
    flags = bed.run("grep -m1 ^flags /proc/cpuinfo").stdout.split()
    assert "cx8" in flags
    assert "cx16" not in flags or accelerator(bed.image) == "kvm"


def test_commands_run_side_by_side(beds: Beds) -> None:
    bed = beds(xen=False)
    first = bed.popen("read line; echo got $line")
    assert bed.run("echo second").stdout == "second\n"
    first.stdin(b"word\n")
    assert first.wait().stdout == "got word\n"


def test_a_command_that_does_not_end_is_killed_and_the_bed_lives_on(beds: Beds) -> None:
    bed = beds(xen=False)
    with pytest.raises(CommandTimeout, match="no end after 1 s of: echo begun"):
        bed.run("echo begun; sleep 300", timeout=1.0)
    assert "echo begun" in stuck.reports.pop()
    assert bed.run("echo alive").stdout == "alive\n"


def test_what_can_not_be_killed_is_told_with_what_it_waits_for(beds: Beds) -> None:
    """A file system that is frozen has its writers wait."""
    bed = beds.fresh(xen=False)
    beds.expect_loss(bed)
    bed.run("truncate -s 64M /srv/frozen && mkfs.ext4 -q /srv/frozen && mount /srv/frozen /mnt && fsfreeze -f /mnt")
    with pytest.raises(CommandTimeout, match=r"touch \(\d+\): .*(percpu_rwsem|sb_start_write|mnt_want_write)"):
        bed.run("touch /mnt/file", timeout=20.0)
    report = stuck.reports.pop()
    assert report.startswith(f"{bed}: no end after 20 s of: touch /mnt/file\n")
    # others may wait as well
    assert re.search(r"^touch \(", report, re.M)


def test_root_has_room_and_takes_direct_io(beds: Beds) -> None:
    bed = beds(xen=False)
    free = int(bed.run("df --output=avail -B1 /srv | tail -n 1").stdout)
    assert free >= 3 << 30
    bed.run("dd if=/dev/zero of=/srv/direct bs=4096 count=16 oflag=direct && rm /srv/direct")


def test_a_warning_in_the_kernels_log_is_held_against_the_test(beds: Beds) -> None:
    bed = beds(xen=False)
    assert bed.dmesg_findings() == []
    bed.run("echo '<4>WARNING: CPU: 0 PID: 1 at made/up.c:1' > /dev/kmsg")
    assert [line.partition("] ")[2] for line in bed.dmesg_findings()] == ["WARNING: CPU: 0 PID: 1 at made/up.c:1"]
    assert bed.dmesg_findings() == []


def test_a_panic_is_noticed_at_once_and_shown(beds: Beds) -> None:
    bed = beds.fresh(xen=False)
    beds.expect_loss(bed)
    start = time.monotonic()
    with pytest.raises(BedLost, match="Kernel panic - not syncing: sysrq triggered crash"):
        bed.run("echo c > /proc/sysrq-trigger; sleep 300")
    assert time.monotonic() - start < 60
    assert not bed.alive


def test_the_module_built_for_its_kernel_is_where_modprobe_finds_it(beds: Beds) -> None:
    bed = beds(xen=False)
    assert bed.run("modinfo -n blktap").stdout == f"/lib/modules/{bed.image.kernel_version}/extra/blktap.ko\n"


def test_two_beds_share_a_disk(beds: Beds, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "shared.raw", size=1 << 20, shared=True)
    one, two = (beds.fresh(xen=False, disks=(disk,)) for _ in range(2))
    one.run("echo from one | dd of=/dev/vdb conv=fsync")
    assert two.run("dd if=/dev/vdb bs=512 count=1 iflag=direct | head -n 1").stdout == "from one\n"


@pytest.mark.slow
def test_debian_13_boots(beds: Beds) -> None:
    bed = beds(xen=False, release=13)
    assert bed.run(". /etc/os-release; echo $VERSION_ID").stdout == "13\n"
    bed.run("modinfo blktap")
