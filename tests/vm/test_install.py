# SPDX-License-Identifier: LGPL-2.1-only
"""What `make install` gives a plain Debian with systemd and udev: disks that nothing parses and all can use."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.vm import Bed

NODES = "/dev/xen/blktap-2"


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    with tapdisks.clean(beds(xen=False, init="systemd")) as bed:
        yield bed


@pytest.fixture
def disk(bed: Bed) -> Iterator[str]:
    """The device of a raw image of 64 MiB, once udev is done with it."""
    bed.run("rm -f /srv/install.img; truncate -s 64M /srv/install.img")
    device = tapdisks.create(bed, "aio:/srv/install.img")
    bed.run("udevadm settle")
    yield device
    tapdisks.destroy(bed, device)


def reopen(bed: Bed, device: str) -> str:
    """The disk anew, so that udev sees what is on it now."""
    tapdisks.destroy(bed, device)
    again = tapdisks.create(bed, "aio:/srv/install.img")
    assert again == device
    bed.run(f"udevadm settle; udevadm trigger --action=change --settle {device}")
    return again


def properties(bed: Bed, device: str) -> dict[str, str]:
    """What udev knows of a device."""
    lines = bed.run(f"udevadm info -q property {device}").stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_systemd_and_udev_come_up_whole(bed: Bed) -> None:
    """The bed itself."""
    assert bed.run("systemctl --failed --plain --no-legend").stdout == ""
    assert "virtio" in bed.run("ls /dev/disk/by-path").stdout


def test_boot_loads_the_driver_makes_the_directories_and_fails_no_unit(bed: Bed) -> None:
    assert bed.run("test -d /sys/module/blktap && systemctl is-system-running --wait", check=False).stdout == "running\n"
    stats = bed.run("stat -c '%n %a %U:%G' /run/blktap-control /run/xenblk").stdout
    assert stats == "/run/blktap-control 700 root:root\n/run/xenblk 755 root:root\n"


def test_nodes_belong_to_root_alone_whatever_the_default_rules_say(bed: Bed, disk: str) -> None:
    minor = disk.rpartition("tapdev")[2]
    stats = bed.run(f"cd {NODES} && stat -c '%n %a %U:%G' control blktap{minor} tapdev{minor}").stdout
    assert set(stats.splitlines()) == {
        "control 600 root:root",
        f"blktap{minor} 600 root:root",
        f"tapdev{minor} 600 root:root",
    }
    # the rules do give other disks to a group
    assert bed.run("stat -c '%a %G' /dev/vda").stdout == "660 disk\n"


def test_a_tapdisk_keeps_its_one_guardian_where_there_is_a_system_log(bed: Bed) -> None:
    with tapdisks.configured(bed, "restart=yes"):
        bed.run("truncate -s 64M /srv/install.img")
        device = tapdisks.create(bed, "aio:/srv/install.img")
        bed.run("sleep 3")
        assert len(bed.run("pgrep -x tapdisk-guard").stdout.split()) == 1
        assert bed.run("journalctl -b -t tapdisk --grep='guardian has ended'", check=False).stdout == "-- No entries --\n"
        [disk] = tapdisks.served(bed)
        bed.run(f"kill -9 {disk.pid}")
        bed.wait_for(f"tap-ctl list | grep -q 'minor={disk.minor} state=0 '", 30, 0.2)
        tapdisks.destroy(bed, device)


@pytest.mark.parametrize(
    "content",
    [
        "mkfs.ext4 -q -L guest {}",
        "pvcreate -qy {0} && vgcreate -qy guestvg {0} && lvcreate -qy -an -L 8M -n guestlv guestvg",
        # one partition, type 83, of 8 MiB at 1 MiB
        r"printf '\203\0\0\0\0\010\0\0\0\100' | dd of={0} bs=1 seek=450 conv=notrunc status=none;"
        r"printf '\125\252' | dd of={0} bs=1 seek=510 conv=notrunc status=none; blkid -p -o value -s PTTYPE {0}",
    ],
    ids=["ext4", "lvm", "partitions"],
)
def test_what_a_guest_wrote_is_not_parsed(bed: Bed, disk: str, content: str) -> None:
    bed.run(content.format(disk))
    before = bed.run("ls /dev/disk/* /dev/mapper; cat /proc/partitions").stdout
    reopen(bed, disk)
    known = properties(bed, disk)
    assert [key for key in known if key.startswith(("ID_", "LVM_"))] == []
    assert known["UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG"] == "1"
    assert bed.run("ls /dev/disk/* /dev/mapper; cat /proc/partitions").stdout == before
    assert bed.run("systemctl list-units --all 'lvm-activate-*' --no-legend").stdout == ""


def test_closing_a_disk_makes_no_event(bed: Bed, disk: str) -> None:
    """udev's watch would look at the disk after each writer."""
    bed.run(f"dd if=/dev/zero of={disk} bs=4k count=1 conv=fsync 2>/dev/null; udevadm settle")
    links = bed.run("for l in /run/udev/watch/*; do readlink $l; done", check=False).stdout.split()
    assert f"b{bed.run(f'stat -c %Hr:%Lr {disk}').stdout.strip()}" not in links
    # the boot disk is watched
    assert f"b{bed.run('stat -c %Hr:%Lr /dev/vda').stdout.strip()}" in links


def test_lvm_can_be_told_to_keep_away(bed: Bed, disk: str) -> None:
    """The filter that xenblk(8) gives: LVM's own commands scan all block devices."""
    bed.run(f"pvcreate -qy {disk}")
    assert disk in bed.run("pvs --noheadings -o pv_name").stdout
    told = 'devices{global_filter=["r|^/dev/xen/blktap-2/|"]}'
    assert disk not in bed.run(f"pvs --noheadings -o pv_name --config '{told}'").stdout
    bed.run(f"wipefs -qa {disk}")


def test_a_disk_is_used_by_its_name(bed: Bed, disk: str) -> None:
    bed.run(f"mkfs.ext4 -q {disk} && mount {disk} /mnt && echo text > /mnt/file && umount /mnt")
    again = reopen(bed, disk)
    assert bed.run(f"mount {again} /mnt && sleep 1 && cat /mnt/file; umount /mnt").stdout == "text\n"


def test_the_units_are_valid_and_no_guests_disks_are_looked_for_without_xen(bed: Bed) -> None:
    units = "xenblk.service xenblk-gc.service xenblk-gc.timer"
    assert bed.run(f"systemd-analyze verify --man=no {units}").output == ""
    bed.run("systemctl enable --now xenblk.service xenblk-gc.timer")
    try:
        # disks that are made by hand have the settings too
        assert bed.run("systemctl show -p ActiveState --value xenblk.service").stdout == "active\n"
        assert "image_dir=/srv\n" in bed.get("/run/xenblk/config").decode()
        # Debian mounts /proc/xen after the timers have begun: what it starts looks for that
        assert bed.run("systemctl show -p ActiveState --value xenblk-gc.timer").stdout == "active\n"
        bed.run("systemctl start xenblk-gc.service")
        shown = bed.run("systemctl show -p ActiveState,ConditionResult,Result xenblk-gc.service").stdout
        assert sorted(shown.split()) == ["ActiveState=inactive", "ConditionResult=no", "Result=success"]
        assert bed.run("systemctl is-system-running --wait").stdout == "running\n"
    finally:
        bed.run("systemctl disable --now xenblk.service xenblk-gc.timer; rm -f /run/xenblk/config")


def test_every_command_has_help_and_a_version(bed: Bed) -> None:
    for command in ("xenblk", "tap-ctl", "vhd-util", "/usr/libexec/tapdisk"):
        assert bed.run(f"{command} --help").stdout, command
        name = os.path.basename(command)
        assert re.fullmatch(rf"{name} \d+\.\d+\.\d+\n", bed.run(f"{command} --version").stdout)
        wrong = bed.run(f"{command} --no-such-option", check=False)
        assert wrong.status == 2, command
        assert f"usage: {name} " in wrong.stderr


def test_the_settings_as_installed_are_the_defaults(bed: Bed) -> None:
    bed.run("xenblk config check")
    assert bed.run("xenblk config show").stdout == bed.run("XENBLK_YAML=/none xenblk config show").stdout


def test_what_the_readme_says_of_use_without_xen_is_true(bed: Bed) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Use it without Xen\n")[2].partition("\n## ")[0]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    assert commands.pop(commands.index("..."))
    # Those that need no driver either are in tests/io/test_nbd_server.py.
    commands = [line for line in commands if "disk.sock" not in line and "--run" not in line]
    assert len(commands) == 7
    pid = "4711"
    for line in commands:
        command, _, promised = line.partition("#")
        shown = bed.run(command.replace("4711", pid)).stdout.strip()
        if "tap-ctl list" in command:
            pid = shown.partition(" ")[0].removeprefix("pid=")
            assert shown == promised.strip().replace("4711", pid)
        elif "prints" in promised:
            assert shown == promised.removeprefix(" prints ")


OPENS_WHAT_SHOWS = """
import os, time
open("/srv/looks", "w").close()
while True:
    try:
        fd = os.open("/dev/nbd1024", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        continue
    time.sleep(1)
    os.close(fd)
    break
"""


def test_a_disk_of_the_kernels_nbd_client_is_made_though_a_program_opens_it_at_once(bed: Bed) -> None:
    """Which udev does; the kernel connects no device that is open."""
    bed.run("modprobe nbd max_part=0 && vhd-util create -n /srv/nbd.vhd -s 8")
    bed.put("/srv/opener.py", OPENS_WHAT_SHOWS.encode())
    opener = bed.popen("exec python3 /srv/opener.py")
    try:
        bed.wait_for("test -e /srv/looks", 30, 0.1)
        device = bed.run("tap-ctl create -a vhd:/srv/nbd.vhd --transport=nbd").stdout.strip()
        opener.wait()
        bed.run(f"dd if={device} of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null")
        tapdisks.destroy(bed, device)
    finally:
        opener.kill()
        bed.run("rm -f /srv/nbd.vhd /srv/opener.py /srv/looks; udevadm settle")
        bed.wait_for("modprobe -r nbd", 60, 0.5)


def test_a_disk_of_the_kernels_nbd_client_is_roots_alone_and_not_parsed(bed: Bed) -> None:
    """Partitions too, which the module looks for if it was loaded by others."""
    bed.run("modprobe nbd max_part=8 && vhd-util create -n /srv/nbd.vhd -s 64")
    device = bed.run("tap-ctl create -a vhd:/srv/nbd.vhd --transport=nbd").stdout.strip()
    try:
        bed.run(rf"printf '\203\0\0\0\0\010\0\0\0\100' | dd of={device} bs=1 seek=450 conv=notrunc status=none")
        bed.run(rf"printf '\125\252' | dd of={device} bs=1 seek=510 conv=notrunc status=none; blockdev --rereadpt {device}")
        name = bed.run(f"udevadm settle; basename $(realpath {device})").stdout.strip()
        bed.run(f"udevadm trigger --settle /dev/{name} /dev/{name}p1")
        stats = bed.run(f"stat -c '%n %a %U:%G' /dev/{name} /dev/{name}p1").stdout
        assert stats == f"/dev/{name} 600 root:root\n/dev/{name}p1 600 root:root\n"
        for node in (name, f"{name}p1"):
            known = bed.run(f"udevadm info -q property /dev/{node}").stdout
            assert "UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG=1\n" in known and "ID_FS" not in known
        assert bed.run(f"ls -l /dev/disk/* | grep {name}", check=False).stdout == ""
        told = 'devices{global_filter=["r|^/dev/xen/blktap-2/|","r|^/dev/nbd[1-5][0-9][0-9][0-9]|"]}'
        bed.run(f"pvcreate -qy /dev/{name}p1")
        assert f"/dev/{name}p1" in bed.run("pvs --noheadings -o pv_name").stdout
        assert bed.run(f"pvs --noheadings -o pv_name --config '{told}'").stdout.strip() == ""
    finally:
        pid = bed.run("pgrep -x tapdisk").stdout.strip()
        bed.run(f"tap-ctl destroy -p {pid} -m {device.rpartition('tapdev')[2]}; rm /srv/nbd.vhd; udevadm settle")
        bed.wait_for("modprobe -r nbd", 60, 0.5)
    assert bed.run(f"test -e {device} || ls /dev/nbd1* 2>/dev/null", check=False).stdout == ""
