# SPDX-License-Identifier: LGPL-2.1-only
"""Disks whose gendisk the stock kernel makes: no module of ours is loaded, without Xen."""

import json
import random
from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.stock import HOME, Stock, clean

NODES = "/dev/xen/blktap-2"


def on(*stock: tuple[int, str]) -> pytest.MarkDecorator:
    """With these transports, on these releases. A transport's later release goes beyond the time of `make test`."""
    cases = [
        pytest.param(each, id=f"{each[1]}-{each[0]}", marks=[pytest.mark.deep] if each == (13, "nbd") else [])
        for each in stock
    ]
    return pytest.mark.parametrize("stock", cases, indirect=True)


ON_EACH = on((12, "nbd"), (13, "nbd"), (13, "ublk"))
# where a release makes no difference to what is ours
ON_ONE_EACH = on((12, "nbd"), (13, "ublk"))


@pytest.fixture
def stock(request: pytest.FixtureRequest, beds: Beds) -> Iterator[Stock]:
    release, transport = request.param
    with clean(beds(release=release, xen=False), transport) as stock:
        yield stock


@ON_EACH
def test_data_is_what_was_written(stock: Stock) -> None:
    """Random requests against a model, on a chain of three, and all of it again by another tapdisk."""
    bed, seed = stock.bed, random.randrange(1 << 32)
    print(f"seed {seed}")
    leaf = stock.image("data", 24, depth=3)
    device = stock.create(f"vhd:{leaf}")
    digest = bed.run(f"python3 /root/diskmodel.py {device} {seed} 250").stdout.strip()
    [disk] = tapdisks.served(bed)
    stats = json.loads(bed.run(f"tap-ctl stats -p {disk.pid} -m {disk.minor}").stdout)
    assert stats["transport"] == stock.transport and stats["flush"]["requests"] > 1
    assert stats["discard"]["bytes"] > 0 and sum(stats[op]["errors"] for op in ("read", "write", "discard", "zero")) == 0
    tapdisks.destroy(bed, device)
    device = stock.create(f"vhd:{leaf}", "-R")
    assert stock.sha256(device) == digest
    tapdisks.destroy(bed, device)
    bed.run(f"vhd-util check -n {leaf} -p -b")


@ON_ONE_EACH
def test_a_disk_has_its_own_name_and_limits(stock: Stock) -> None:
    bed = stock.bed
    device = stock.create(f"vhd:{stock.image('limits', 16)}")
    name = stock.kernel_name(device)
    assert device == f"{NODES}/tapdev0" and name != "tapdev0"
    assert bed.run(f"stat -L -c '%a %u:%g %t:%T' {device} /dev/{name}").stdout.split("\n")[0].startswith("600 0:0 ")
    queue = f"/sys/block/{name}/queue"
    bed.wait_for(f"test $(cat {queue}/discard_max_bytes) -le {1 << 30}", 20, 0.2)
    values = bed.run(f"cd {queue}; cat max_sectors_kb fua write_cache logical_block_size ../ro ../size").stdout.split()
    assert values == ["256", "1", "write", "back", "512", "0", str(16 << 11)]
    assert 0 < int(bed.get(f"{queue}/discard_max_bytes")) <= 1 << 30
    assert json.loads(bed.run("tap-ctl list --json").stdout)[0]["transport"] == stock.transport
    # what a guest has for partitions is not looked for
    bed.run(f"printf '\\125\\252' | dd of={device} bs=1 seek=510 conv=notrunc status=none")
    bed.run(f"printf '\\203\\0\\0\\0\\0\\010\\0\\0\\0\\100' | dd of={device} bs=1 seek=450 conv=notrunc status=none")
    assert bed.run(f"blkid -p -o value -s PTTYPE {device}; ls -d /sys/block/{name}/{name}p* 2>/dev/null", check=False).stdout == "dos\n"
    tapdisks.destroy(bed, device)
    assert bed.run(f"ls /dev/{name} {device}", check=False).status != 0


@ON_ONE_EACH
def test_read_only_and_sectors_of_4096_bytes(stock: Stock) -> None:
    bed = stock.bed
    device = stock.create(f"vhd:{stock.image('ro', 16)}", "-R")
    assert bed.run(f"blockdev --getro {device}").stdout == "1\n"
    assert bed.run(f"dd if=/dev/zero of={device} bs=4k count=1 oflag=direct 2>/dev/null", check=False).status == 1
    tapdisks.destroy(bed, device)
    bed.run(f"truncate -s 16M {HOME}/4k.img; losetup -b 4096 --direct-io=on /dev/loop5 {HOME}/4k.img")
    device = stock.create("aio:/dev/loop5")
    assert bed.run(f"blockdev --getss {device}").stdout == "4096\n"
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    digest = bed.run(f"python3 /root/diskmodel.py {device} {seed} 100").stdout.strip()
    tapdisks.destroy(bed, device)
    assert stock.sha256("/dev/loop5") == digest
    bed.run("losetup -d /dev/loop5")


@pytest.mark.deep
@ON_EACH
def test_kill_9_loses_nothing(stock: Stock) -> None:
    """Several times under load: the device holds its requests until another tapdisk has taken over. More kills are test_kills'."""
    bed = stock.bed
    bed.run("echo restart=yes > /run/xenblk/config")
    leaf = stock.image("kill", 24, depth=2)
    device = stock.create(f"vhd:{leaf}")
    name = stock.kernel_name(device)
    stock.resend_sooner(name)
    load = stock.load(device)
    for _ in range(3):
        load.wrote(name, 60)
        [disk] = tapdisks.served(bed)
        bed.run(f"kill -9 {disk.pid}")
        bed.wait_for(f"tap-ctl list | grep -q '^pid=.* minor=0 state=0 ' && ! tap-ctl list | grep -q '^pid={disk.pid} '", 90, 0.2)
        stock.resend_sooner(name)
        assert bed.run(f"realpath {device}").stdout.strip() == f"/dev/{name}"
    load.wrote(name, 60)
    load.end()
    tapdisks.destroy(bed, device)
    bed.run(f"vhd-util check -n {leaf} -p")


@ON_EACH
def test_pause_snapshot_and_growth_under_load(stock: Stock) -> None:
    bed = stock.bed
    leaf = stock.image("life", 24)
    device = stock.create(f"vhd:{leaf}")
    [disk] = tapdisks.served(bed)
    at = f"-p {disk.pid} -m {disk.minor}"
    load = stock.load(device)
    load.wrote(stock.kernel_name(device), 60)
    bed.run(f"timeout 20 tap-ctl snapshot {at} -n life.base.vhd")
    bed.run(f"timeout 20 tap-ctl pause {at}")
    assert tapdisks.served(bed)[0].state == "0x20"
    # a ublk device can grow from Linux 6.16 on
    megabytes = 24 if stock.transport == "ublk" else 32
    grow = f"vhd-util resize -n {leaf} -s {megabytes} && " if megabytes > 24 else ""
    # at once again, when the kernel may still wait for its requests before it tells the new size
    again = f" && timeout 20 tap-ctl pause {at} && timeout 20 tap-ctl unpause {at}"
    bed.run(f"{grow}sleep 0.5 && timeout 20 tap-ctl unpause {at}{again}")
    if grow:
        # and larger again; what is not refused then is upgraded, and no tapdisk waits for another
        megabytes += 8
        grow = f"timeout 20 tap-ctl pause {at} && vhd-util resize -n {leaf} -s {megabytes} && timeout 20 tap-ctl unpause {at}"
        bed.run(grow)
        upgraded = bed.run(f"timeout 30 tap-ctl upgrade {at.rpartition(' -m')[0]}", check=False)
        assert upgraded.status == 0 or "is being resized; try again" in upgraded.output, upgraded.output
    bed.wait_for(f"test $(blockdev --getsize64 {device}) = {megabytes << 20}", 20, interval=0.2)
    load.wrote(stock.kernel_name(device), 60)
    load.end()
    bed.run(f"dd if=/dev/urandom of={device} bs=1M seek={megabytes - 4} count=4 oflag=direct conv=fsync 2>/dev/null")
    digest = stock.sha256(device)
    tapdisks.destroy(bed, device)
    device = stock.create(f"vhd:{leaf}", "-R")
    assert stock.sha256(device) == digest
    tapdisks.destroy(bed, device)
    bed.run(f"vhd-util check -n {leaf} -p")


@ON_ONE_EACH
def test_a_disk_in_use_stays_until_it_is_forced(stock: Stock) -> None:
    bed = stock.bed
    device = stock.create(f"vhd:{stock.image('busy', 16)}")
    name = stock.kernel_name(device)
    [disk] = tapdisks.served(bed)
    at = f"-p {disk.pid} -m {disk.minor}"
    holder = bed.popen(f"exec 5<>{device}; echo held; read x; dd if=/dev/urandom bs=4k count=1 oflag=direct >&5 2>/dev/null")
    bed.wait_for(f"ls -l /proc/*/fd 2>/dev/null | grep -q '/dev/{name}$'", 20, interval=0.2)
    result = bed.run(f"tap-ctl close {at}", check=False, timeout=60)
    assert result.status == 1
    assert result.stderr.startswith(f"tap-ctl: {device} is in use")
    assert result.stderr.endswith(": detach it from the guest or unmount it first\n")
    # it goes on, and does not go when it is closed
    bed.run(f"dd if={device} of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null")
    holder.stdin(b"\n")
    holder.wait()
    bed.run(f"dd if={device} of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null")
    assert [(d.pid, d.minor) for d in tapdisks.served(bed)] == [(disk.pid, 0)]
    bed.run(f"mkfs.ext4 -q {device} && mount {device} /mnt && dd if=/dev/zero of=/mnt/x bs=1M count=2 2>/dev/null")
    assert bed.run(f"tap-ctl destroy {at}", check=False, timeout=60).status == 1
    bed.run("umount /mnt")
    holder = bed.popen(f"exec 5<>{device}; read x; dd of=/dev/fd/5 if=/dev/zero bs=4k count=1 oflag=direct conv=notrunc")
    bed.wait_for(f"ls -l /proc/*/fd 2>/dev/null | grep -q '/dev/{name}$'", 20, interval=0.2)
    bed.run(f"timeout 30 tap-ctl destroy {at} -f")
    holder.stdin(b"\n")
    assert holder.wait(check=False).status != 0
    # the kernel ends it once nobody has it open
    bed.wait_for(f"! test -e /sys/block/{name}", 20, interval=0.2)


@ON_ONE_EACH
def test_minors_are_given_freed_and_claimed(stock: Stock) -> None:
    """As the single verbs do it, and with more disks than the kernel's module has by default."""
    bed = stock.bed
    count = 20
    bed.run(f"cd {HOME} && for i in $(seq 0 {count - 1}); do truncate -s 4M $i.img; echo $i | dd of=$i.img conv=notrunc 2>/dev/null; done")
    bed.run(
        f"set -e; pid=$(tap-ctl spawn); for i in $(seq 0 {count - 1}); do"
        f" test $(tap-ctl allocate --transport={stock.transport}) = {NODES}/tapdev$i;"
        f" tap-ctl attach -p $pid -m $i; tap-ctl open -p $pid -m $i -a aio:{HOME}/$i.img; done"
    )
    rows = tapdisks.served(bed)
    assert [row.minor for row in rows] == list(range(count))
    assert bed.run(f"for i in $(seq 0 {count - 1}); do head -n 1 {NODES}/tapdev$i; done").stdout.split() == [
        str(i) for i in range(count)
    ]
    pid = rows[0].pid
    other = bed.run("tap-ctl spawn").stdout.strip()
    result = bed.run(f"tap-ctl attach -p {other} -m 3", check=False)
    assert result.stderr == "tap-ctl: minor 3 is served by another tapdisk; see tap-ctl list\n"
    assert "a tapdisk has it" in bed.run("tap-ctl free -m 3", check=False).stderr
    bed.run(f"kill {other}; tap-ctl destroy -p {pid} -m 3")
    assert bed.run(f"tap-ctl allocate --transport={stock.transport}").stdout == f"{NODES}/tapdev3\n"
    assert "minor=3\n" in bed.run("tap-ctl list").stdout
    bed.run("tap-ctl free -m 3")
    # What a killed one leaves is freed with its requests, and its name with it.
    bed.run(f"kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do :; done; test -e {NODES}/tapdev5 && tap-ctl free -m 5 && ! ls {NODES}/tapdev5")
    bed.run(f"for i in $(seq 0 {count - 1}); do case $i in 3|5) ;; *) tap-ctl destroy -p {pid} -m $i ;; esac; done")


@ON_ONE_EACH
def test_a_transport_that_there_is_not_is_named_with_the_reason(stock: Stock) -> None:
    bed = stock.bed
    spec = f"aio:{HOME}/none.img"
    bed.run(f"truncate -s 4M {HOME}/none.img")
    error = bed.run(f"tap-ctl create -a {spec} --transport=blktap", check=False).stderr
    assert error.startswith("tap-ctl: transport blktap: the blktap driver can't be loaded: modprobe: ")
    error = bed.run(f"tap-ctl create -a {spec} --transport=tcmu", check=False).stderr
    assert error == "tap-ctl: transport=tcmu: must be auto, or some of blktap,ublk,nbd in the order to try them\n"
    # the configuration's, in its order, and what is not there is passed by; so it is without a word of the configuration
    for setting in (f"transport=blktap,{stock.transport}", "transport=auto", ""):
        bed.run(f"mkdir -p /run/xenblk && echo {setting} > /run/xenblk/config && tap-ctl check")
        device = bed.run(f"tap-ctl create -a {spec}").stdout.strip()
        assert json.loads(bed.run("tap-ctl list --json").stdout)[0]["transport"] == stock.transport
        tapdisks.destroy(bed, device)
