# SPDX-License-Identifier: LGPL-2.1-only
"""What can't be served fails `xl create` with one line that names the file and the reason, and changes nothing."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import hotplug, tapdisks, vhdmake
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.vhdmake import DIFFERENCING, Locator, Spec
from tests.lib.vm import Bed

CREATE = "xl create"
HOME = "/srv/wrong"
CONFIG = "/srv/wrong.cfg"
BASE = Spec(uuid=UUID(int=0xBA5E))


@dataclass(frozen=True)
class Case:
    """A disk that can't be: how its files are made under a directory, what names it, and the words of the reason; scripts_words:
    of the block script's, where that is another one."""

    make: Callable[[Path], object]
    names: str
    words: str
    disk: str = "tap2:vhd:{home}/a.vhd,xvda,w"
    target: str = "vhd:{home}/a.vhd"
    mode: str = "w"
    scripts_words: str = ""


def child(parent: str, uuid: UUID = BASE.uuid) -> Spec:
    """A differencing image that names its parent by a relative locator."""
    return Spec(
        kind=DIFFERENCING,
        uuid=UUID(int=0xC1D),
        parent_uuid=uuid,
        parent_name=parent.rpartition("/")[2],
        locators=(Locator(b"W2ru", parent.replace("/", "\\").encode("utf-16-le")),),
    )


def two(directory: Path, leaf: Spec, base: Spec | None = BASE) -> None:
    vhdmake.make(directory / "a.vhd", leaf)
    if base is not None:
        vhdmake.make(directory / "base.vhd", base)


def corrupt_header(directory: Path) -> None:
    vhdmake.set_header(vhdmake.make(directory / "a.vhd", BASE), "table offset", struct.pack(">Q", 7), fix=False)


def corrupt_bat(directory: Path) -> None:
    vhdmake.set_bat(vhdmake.make(directory / "a.vhd", BASE), 1, 0x00FFFFF0)


def corrupt_footers(directory: Path) -> None:
    path = vhdmake.make(directory / "a.vhd", BASE)
    vhdmake.set_footer(path, "current size", struct.pack(">Q", 1 << 40), fix=False)


def loop(directory: Path) -> None:
    one, other = UUID(int=1), UUID(int=2)
    vhdmake.make(directory / "a.vhd", replace(child(".\\b.vhd", other), uuid=one))
    vhdmake.make(directory / "b.vhd", replace(child(".\\a.vhd", one), uuid=other))


def deep(directory: Path) -> None:
    """31 images, a.vhd the leaf."""
    vhdmake.make(directory / "0.vhd", replace(BASE, uuid=UUID(int=100)))
    for level in range(1, 31):
        name = "a.vhd" if level == 30 else f"{level}.vhd"
        spec = replace(child(f".\\{level - 1}.vhd", UUID(int=99 + level)), uuid=UUID(int=100 + level))
        vhdmake.make(directory / name, spec)


def parent(directory: Path) -> None:
    vhdmake.make(directory / "a.vhd", BASE)
    vhdmake.make(directory / "b.vhd", child(".\\a.vhd"))


def raw(directory: Path) -> None:
    (directory / "a.vhd").write_bytes(b"raw data" * (1 << 17))


CASES = {
    "missing image": Case(lambda d: None, "{home}/a.vhd", "No such file or directory"),
    "raw data as VHD": Case(raw, "{home}/a.vhd", "footer"),
    "directory as raw image": Case(
        lambda d: (d / "a.vhd").mkdir(),
        "{home}/a.vhd",
        "neither a regular file",
        "tap2:aio:{home}/a.vhd,xvda,w",
        "aio:{home}/a.vhd",
        scripts_words="Is a directory",
    ),
    "corrupt footers": Case(corrupt_footers, "{home}/a.vhd", "footer"),
    "corrupt header": Case(corrupt_header, "{home}/a.vhd", "header"),
    "BAT entry past the end": Case(corrupt_bat, "{home}/a.vhd", "BAT"),
    "missing parent": Case(lambda d: two(d, child(".\\base.vhd"), None), "{home}/a.vhd", "base.vhd"),
    "parent with another UUID": Case(
        lambda d: two(d, child(".\\base.vhd", UUID(int=0xBAD))), "{home}/base.vhd", "uuid"
    ),
    "parent outside": Case(lambda d: two(d, child("..\\..\\etc\\shadow"), None), "{home}/a.vhd", "/etc/shadow"),
    "parent loop": Case(
        loop, "{home}/a.vhd", "loop", "tap2:vhd:{home}/a.vhd,xvda,r", mode="r"
    ),
    "chain of 31": Case(deep, "{home}/a.vhd", "30 images"),
    "image that is a parent": Case(
        parent, "{home}/a.vhd", "b.vhd"
    ),
    "unknown driver": Case(
        raw,
        "floppy:{home}/a.vhd",
        "unknown deprecated disk prefix",
        "tap2:floppy:{home}/a.vhd,xvda,w",
        "floppy:{home}/a.vhd",
        scripts_words="not a disk that tapdisk serves",
    ),
}


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with nothing of tapdisk in it, before and after."""
    with tapdisks.clean(beds()) as bed:
        bed.run(f"rm -rf {HOME} && mkdir -p {HOME}")
        yield bed
        bed.run(f"rm -rf {HOME}")


def put_tree(bed: Bed, directory: Path) -> None:
    """The files made here, in the bed."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            bed.run(f"mkdir {HOME}/{path.name}")
        else:
            bed.put(f"{HOME}/{path.name}", path.read_bytes())


@contextmanager
def unchanged(bed: Bed) -> Iterator[None]:
    """Holds what is done meanwhile to leaving every image byte for byte, and no guest."""
    look = f"cd {HOME} && find . -type f -exec sha256sum {{}} + | sort; stat -c '%n %s %Y' {HOME}/*"
    before = bed.run(look, check=False).stdout
    yield
    assert bed.run(look, check=False).stdout == before
    # a domain goes when xenstored and xenconsoled have let go of its pages
    bed.wait_for('test -z "$(xl list | tail -n +3)"', 30)


def refused(bed: Bed, disk: str, env: str = "") -> str:
    """The only line of a creation that fails before libxl is asked."""
    bed.put(CONFIG, f"name = 'wrong'\nmemory = 64\nkernel = '/srv/guest/vmlinuz'\ndisk = ['{disk}']\n".encode())
    result = bed.run(f"{env} {CREATE} {CONFIG}", check=False)
    assert result.status == 1
    assert result.output.count("\n") == 1, result.output
    return result.output


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_disk_that_cannot_be_served(bed: Bed, tmp_path: Path, case: Case) -> None:
    """By xenblk before anything is started, and by the block script, for those who call libxl in another way."""
    case.make(tmp_path)
    put_tree(bed, tmp_path)
    names = case.names.format(home=HOME)
    with unchanged(bed):
        # its first words are the spec, which has most names in it, unless libxl has not understood that
        line = refused(bed, case.disk.format(home=HOME))
        reason = line.partition("': ")[2] or line.partition(": not understood by libxl")[2]
        assert names in reason and case.words in reason
        error = hotplug.refused(bed, case.target.format(home=HOME), case.mode)
        assert names in error and (case.scripts_words or case.words) in error


def test_xl_shows_the_reason_that_the_script_gives(bed: Bed, tmp_path: Path) -> None:
    raw(tmp_path)
    put_tree(bed, tmp_path)
    guest = Guest(bed, "wrong", "exit 0", [f"format=raw,script=block-xenblk,vdev=xvda,target=vhd:{HOME}/a.vhd"])
    guest.prepare()
    with unchanged(bed):
        result = bed.run(f"xl create {guest.config_path}", check=False, timeout=200)
    assert result.status != 0 and "error detected" not in result.output
    [telling] = [line for line in result.output.splitlines() if f"{HOME}/a.vhd" in line]
    assert f"script: {HOME}/a.vhd: footer" in telling


def test_a_configuration_of_xenblk_that_is_wrong(bed: Bed, tmp_path: Path) -> None:
    two(tmp_path, BASE, None)
    put_tree(bed, tmp_path)
    for text, words in (("image_dirs: 7\n", "xenblk.yaml:1: image_dirs"), ("a: [\n", "xenblk.yaml:2: not YAML")):
        bed.put("/tmp/xenblk.yaml", text.encode())
        with unchanged(bed):
            assert words in refused(bed, f"tap2:vhd:{HOME}/a.vhd,xvda,w", "XENBLK_YAML=/tmp/xenblk.yaml")
    with unchanged(bed):
        assert "/tmp: " in refused(bed, f"tap2:vhd:{HOME}/a.vhd,xvda,w", "XENBLK_YAML=/tmp")
    # what the C tools read
    bed.run("mkdir -p /run/xenblk && echo engine=steam > /run/xenblk/config")
    try:
        with unchanged(bed):
            assert "/run/xenblk/config: line 1" in hotplug.refused(bed, f"vhd:{HOME}/a.vhd")
    finally:
        bed.run("rm /run/xenblk/config")


def test_a_driver_that_is_not_there(bed: Bed, tmp_path: Path) -> None:
    two(tmp_path, BASE, None)
    put_tree(bed, tmp_path)
    bed.run("rmmod blktap; mv /lib/modules/$(uname -r)/extra/blktap.ko /root/")
    bed.run("mkdir -p /run/xenblk && echo transport=blktap > /run/xenblk/config")
    try:
        with unchanged(bed):
            error = hotplug.refused(bed, f"vhd:{HOME}/a.vhd")
        assert "transport blktap: the blktap driver can't be loaded: modprobe: " in error
    finally:
        bed.run("rm /run/xenblk/config; mv /root/blktap.ko /lib/modules/$(uname -r)/extra/ && modprobe blktap")


def test_a_full_run_directory(bed: Bed, tmp_path: Path) -> None:
    """There are no locks, sockets or settings to be made then."""
    two(tmp_path, BASE, None)
    put_tree(bed, tmp_path)
    bed.run("modprobe blktap; mkdir -p /run/blktap-control")
    bed.run("mount -t tmpfs -o size=64k,nr_inodes=2 full /run/blktap-control && touch /run/blktap-control/x")
    try:
        with unchanged(bed):
            error = hotplug.refused(bed, f"vhd:{HOME}/a.vhd")
        assert "/run/blktap-control/ctl" in error and "No space left on device" in error
        assert bed.run("tap-ctl list; pgrep tapdisk", check=False).stdout == ""
    finally:
        bed.run("umount /run/blktap-control")


@pytest.mark.deep
@pytest.mark.slow
def test_no_xenstored(beds: Beds, tmp_path: Path) -> None:
    """xl waits for it without a word. A bed of its own: xenstored doesn't come back."""
    bed = beds.fresh()
    bed.run(f"modprobe blktap; mkdir -p {HOME}")
    two(tmp_path, BASE, None)
    put_tree(bed, tmp_path)
    before = bed.run(f"sha256sum {HOME}/*").stdout
    bed.run("kill -9 $(cat /run/xenstored.pid)")
    for _ in range(2):
        line = refused(bed, f"tap2:vhd:{HOME}/a.vhd,xvda,w")
        assert "xenstored" in line
        bed.run("rm -f /run/xenstored/socket")
    assert bed.run(f"sha256sum {HOME}/*").stdout == before
    assert bed.run("tap-ctl list; pgrep tapdisk; ls /sys/class/blktap2", check=False).stdout == ""
