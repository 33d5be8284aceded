# SPDX-License-Identifier: LGPL-2.1-only
"""The parts of the test bed that need no machine: frames, archives, apt's sources, the judging of a kernel's log."""

import io
import lzma
import stat
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lib import apt, checkkernel, dmesg, guest, kernelfile
from tests.lib.bed import frames
from tests.lib.console import Console
from tests.lib.cpio import Cpio
from tests.lib.image import BaseImage
from tests.lib.kmod import module_name
from tests.lib.qemu import TCG_WITHOUT, BedSpec, command, kernel_arguments, xen_arguments


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=300))), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(frames.encode(*frame) for frame in sent)
    decoder = frames.Decoder()
    got = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += decoder.feed(stream[:size])
        stream = stream[size:]
    assert got == sent


def test_a_frame_longer_than_the_limit_is_refused_on_both_sides() -> None:
    with pytest.raises(frames.FrameError, match="the limit is"):
        frames.encode(1, frames.OUT, bytes(frames.MAX_PAYLOAD + 1))
    with pytest.raises(frames.FrameError, match="the limit is"):
        frames.Decoder().feed(frames.HEADER.pack(1, frames.OUT, frames.MAX_PAYLOAD + 1))


def test_cpio_reads_what_was_written_and_lays_lib_into_usr(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "lib/systemd").mkdir(parents=True)
    (tree / "lib/systemd/unit").write_bytes(b"unit")
    (tree / "etc").mkdir()
    (tree / "etc/link").symlink_to("../lib/systemd/unit")
    with io.BytesIO() as file:
        archive = Cpio(file)
        archive.file("init", b"#!/bin/sh\n", 0o755)
        archive.tree(tree, "overlay")
        archive.close()
        packed = file.getvalue()
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["busybox", "cpio", "-idm"], input=packed, cwd=out, check=True, capture_output=True)
    assert stat.S_IMODE((out / "init").stat().st_mode) == 0o755
    assert (out / "overlay/usr/lib/systemd/unit").read_bytes() == b"unit"
    assert (out / "overlay/etc/link").readlink() == Path("../lib/systemd/unit")
    assert not (out / "overlay/lib").exists()


POLICY = """Package files:
 100 /var/lib/dpkg/status
     release a=now
 500 https://other.example/apt stable/main amd64 Packages
     release o=Other,a=stable,n=stable,l=Other,c=main,b=amd64
     origin other.example
 500 https://other.example/debian bookworm/main amd64 Packages
     release o=Other,a=stable,n=bookworm,l=Other,c=main,b=amd64
     origin other.example
 100 http://mirror.example/debian bookworm-backports/main amd64 Packages
     release o=Debian Backports,a=oldstable-backports,n=bookworm-backports,l=Debian Backports,c=main,b=amd64
     origin mirror.example
 500 http://mirror.example/debian-security bookworm-security/main amd64 Packages
     release v=12,o=Debian,a=oldstable-security,n=bookworm-security,l=Debian-Security,c=main,b=amd64
     origin mirror.example
 500 http://mirror.example/debian bookworm/main amd64 Packages
     release v=12.15,o=Debian,a=oldstable,n=bookworm,l=Debian,c=main,b=amd64
     origin mirror.example
Pinned packages:
"""


def test_debians_own_sources_are_taken_and_no_others() -> None:
    assert apt.parse_policy(POLICY, "bookworm") == [
        apt.Source("http://mirror.example/debian-security", "bookworm-security", "main"),
        apt.Source("http://mirror.example/debian", "bookworm", "main"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "[    1.0] BUG: unable to handle page fault for address: ffff",
        "[    1.0] WARNING: CPU: 0 PID: 7 at block/blk-mq.c:1",
        "[    1.0] INFO: task dd:123 blocked for more than 120 seconds.",
        "[    1.0] Oops: 0000 [#1] PREEMPT SMP",
        "[    1.0] BUG: KASAN: use-after-free in blktap_first+0x4a/0x90 [blktap]",
        "[    1.0] WARNING: possible circular locking dependency detected",
        "[    1.0] blktap/7 is trying to release lock; DEBUG_LOCKS_WARN_ON(1)",
        "[    1.0] ODEBUG: free active (active state 0) object type: work_struct",
        "[    1.0] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "[    1.0] UBSAN: array-index-out-of-bounds in proto.c:170:6",
        "[    1.0] blktap2 blktap0: completion refused: tag out of range (id 1 tag 65535 code 0 result 0)",
    ],
)
def test_faults_of_the_kernel_are_found(line: str) -> None:
    assert dmesg.findings(f"[    0.5] all is well\n{line}\n") == [line]


@pytest.mark.parametrize(
    "line",
    [
        '[    0.8] PCI: Using host bridge windows from ACPI; if necessary, use "pci=nocrs" and report a bug',
        "[    1.4] blktap2 blktap0: task 71 is gone: requests are held",
        "[    1.4] blktap: loading out-of-tree module taints kernel.",
        "[    1.4] kmemleak: Automatic memory scanning thread started",
        "[    1.4] AMD-Vi: AMD IOMMUv2 functionality not available on this system - This is not a bug.",
    ],
)
def test_talk_of_bugs_is_no_fault(line: str) -> None:
    assert dmesg.findings(line) == []


def race(function: str) -> str:
    lines = ["=" * 66, f"BUG: KCSAN: data-race in {function}", "", "read to 0xffff of 8 bytes by task 7 on cpu 1:", f" {function}"]
    return "".join(f"[    1.0] {line}\n" for line in [*lines, "=" * 66])


def test_data_races_count_if_the_driver_is_in_them() -> None:
    text = race("free_pages+0x1/0x9") + race("blktap_ring_poll+0x40/0x90 [blktap]") + race("a+0x1/0x9")
    assert [line.partition("] ")[2] for line in dmesg.findings(text)] == [
        "BUG: KCSAN: data-race in blktap_ring_poll+0x40/0x90 [blktap]"
    ]
    assert dmesg.races(text) == (3, 1)


OURS = "blktap_end_request+0xb1/0xc0 [blktap]"


@pytest.mark.parametrize(
    ("frames", "count"),
    [
        ([OURS], 1),
        (["__list_add_valid+0x1/0x90", OURS], 1),
        (["list_bl+0x1/0x2", "add+0x1/0x3", OURS], 1),
        (["iocb_put+0xc4/0x530", "aio_complete_rw+0x200/0x280", "bio_endio+0x1/0x8", OURS], 0),
        ([], 1),
    ],
)
def test_a_data_race_is_the_drivers_if_it_touches_the_data_or_has_it_touched(frames: list[str], count: int) -> None:
    lines = ["=" * 66, "BUG: KCSAN: data-race in a / b", "", "read-write (marked) to 0xff of 8 bytes by task 7 on cpu 0:"]
    lines += [" aio_read_events+0x1/0x2", " x+0x1/0x2", " y+0x1/0x2", " z+0x1/0x2", "", "read to 0xff of 8 bytes by interrupt on cpu 1:"]
    lines += [f" {frame}" for frame in frames]
    text = "".join(f"[    1.0] {line}\n" for line in [*(lines if frames else lines[:3]), "=" * 66])
    assert dmesg.races(text) == (1, count)
    assert len(dmesg.findings(text)) == count


def test_what_a_test_provokes_is_no_finding_of_it() -> None:
    line = "[    1.0] blktap2 blktap9: cq_tail of task 7 is beyond the ring\n"
    assert dmesg.findings(line, [r"blktap2 blktap9: \w+ of task \d+ is beyond the ring$"]) == []
    assert len(dmesg.findings(line, [r"blktap2 blktap8: "])) == 1


def test_an_option_that_kconfig_drops_is_missed() -> None:
    wanted = ["CONFIG_KASAN=y", "CONFIG_SMP=y", "CONFIG_KCSAN_SELFTEST=n", "CONFIG_MODULE_FORCE_UNLOAD=n"]
    config = "CONFIG_SMP=y\n# CONFIG_KASAN is not set\nCONFIG_KCSAN_SELFTEST=y\n"
    assert checkkernel.unmet(wanted, config) == ["CONFIG_KASAN=y", "CONFIG_KCSAN_SELFTEST=n"]
    for kernel in checkkernel.KERNELS.values():
        assert checkkernel.wanted_lines(kernel)[0] == f'CONFIG_LOCALVERSION="-{kernel.name}"'


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("Oops: int3: 0000 [#1] PREEMPT SMP\nModules linked in:\nKernel panic - not syncing: Fatal exception\n", True),
        ("Oops: 0002 [#1] PREEMPT SMP\nModules linked in: blktap(OE)\nKernel panic - not syncing\n", False),
        ("bed: the agent did not start\n", False),
    ],
)
def test_only_a_crash_before_our_module_is_loaded_is_worth_another_boot(
    tmp_path: Path, text: str, again: bool
) -> None:
    console = Console(io.BytesIO(text.encode()), tmp_path / "log", lambda line: None)
    console.join(10)
    assert console.crashed_without("blktap") is again


def test_no_comma_reaches_the_arguments_of_a_multiboot_module() -> None:
    assert "," not in kernel_arguments(BedSpec(xen=True, init="systemd"), "tcg")
    with pytest.raises(ValueError, match="at a comma"):
        BedSpec(xen=True, kernel_args="a=b,c")
    assert "dom0_mem=700M,max:700M" in xen_arguments(BedSpec(dom0_memory=700))


def test_an_unknown_init_is_refused() -> None:
    with pytest.raises(ValueError, match="init='upstart': not one of sh, systemd"):
        BedSpec(init="upstart")


def test_a_disk_spec_goes_into_a_guests_configuration_whole() -> None:
    spec = "script=block-xenblk,vdev=xvda,target=vhd:/srv/a b,c.vhd"
    assert guest.quoted(spec) == f"'{spec}'"
    assert guest.quoted("it's") == '"it\'s"'
    with pytest.raises(ValueError, match="both kinds of quotes"):
        guest.quoted("'\"")


def bzimage(payload: bytes, version: int = 0x20F, magic: bytes = b"HdrS") -> bytes:
    """A kernel's file: boot sector, two sectors of setup, 100 bytes of code, the payload, more code."""
    head = bytearray(3 * 512)
    head[0x1F1] = 2
    head[0x202:0x208] = magic + struct.pack("<H", version)
    head[0x248:0x250] = struct.pack("<II", 100, len(payload))
    return bytes(head) + b"c" * 100 + payload + b"code"


def test_a_kernel_packed_by_xz_is_unpacked_and_any_other_is_left() -> None:
    elf = b"\x7fELF" + bytes(5000)
    packed = lzma.compress(elf, check=lzma.CHECK_CRC32) + struct.pack("<I", len(elf))
    assert kernelfile.unpacked(bzimage(packed)) == elf
    for other in (bzimage(packed, 0x207), bzimage(packed, magic=b"----"), bzimage(b"\x28\xb5\x2f\xfd..."), elf, b""):
        assert kernelfile.unpacked(other) == other


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("kernel/drivers/block/xen-blkfront.ko.xz", "xen_blkfront"),
        ("dm-mod.ko", "dm_mod"),
        ("ext4", "ext4"),
    ],
)
def test_a_modules_name_is_modprobes(path: str, name: str) -> None:
    assert module_name(path) == name


@pytest.mark.parametrize("spec", [BedSpec(), BedSpec(xen=False)])
def test_no_emulated_cpu_has_cmpxchg16b_unless_it_is_named_or_counts_instructions(spec: BedSpec, tmp_path: Path) -> None:
    def cpu(spec: BedSpec) -> str:
        args = command(spec, BaseImage(tmp_path, 12, "6.1"), tmp_path / "initrd", tmp_path / "socket", "tcg")
        return args[args.index("-cpu") + 1]

    assert cpu(spec).split(",")[-1] == TCG_WITHOUT == "-cx16"
    assert TCG_WITHOUT not in cpu(replace(spec, icount=True, cpus=1))
    assert cpu(replace(spec, cpu="max,-smap")) == "max,-smap"
