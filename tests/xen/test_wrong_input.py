# SPDX-License-Identifier: LGPL-2.1-only
"""What can't be served fails `xl create` with one line that names the file and the reason, and changes nothing."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import tapdisks, vhdmake
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.vhdmake import DIFFERENCING, MIB, Locator, Spec
from tests.lib.vm import Bed

CREATE = "xenblk create"
HOME = "/srv/wrong"
OUTSIDE = "/root/outside"
BASE = Spec(uuid=UUID(int=0xBA5E))


@dataclass(frozen=True)
class Case:
    """A disk that can't be: how its files are made under a directory, what names it, and the words of the reason."""

    make: Callable[[Path], object]
    names: str
    words: str
    disk: str = "tap2:vhd:{home}/a.vhd,xvda,w"


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


def raw(directory: Path) -> None:
    (directory / "a.vhd").write_bytes(b"raw data" * (1 << 17))


SCRIPT_FORM = "format=raw,script=block-xenblk,vdev=xvda,access=w,target={target}"

CASES = {
    "missing image": Case(lambda d: None, "{home}/a.vhd", "No such file or directory"),
    "missing image, script form": Case(
        lambda d: None,
        "{home}/a.vhd",
        "No such file or directory",
        SCRIPT_FORM.format(target="vhd:{home}/a.vhd"),
    ),
    "raw data as VHD": Case(raw, "{home}/a.vhd", "footer"),
    "directory as raw image": Case(
        lambda d: (d / "a.vhd").mkdir(), "{home}/a.vhd", "neither a regular file", "tap2:aio:{home}/a.vhd,xvda,w"
    ),
    "corrupt footers": Case(corrupt_footers, "{home}/a.vhd", "footer"),
    "corrupt header": Case(corrupt_header, "{home}/a.vhd", "header"),
    "BAT entry past the end": Case(corrupt_bat, "{home}/a.vhd", "BAT"),
    "missing parent": Case(lambda d: two(d, child(".\\base.vhd"), None), "{home}/a.vhd", "base.vhd"),
    "parent with another UUID": Case(
        lambda d: two(d, child(".\\base.vhd", UUID(int=0xBAD))), "{home}/base.vhd", "UUID"
    ),
    "parent outside": Case(
        lambda d: two(d, child("..\\..\\etc\\shadow"), None), "{home}/a.vhd", "/etc/shadow"
    ),
    "parent loop": Case(loop, "{home}/a.vhd", "loop"),
    "chain of 31": Case(deep, "{home}/a.vhd", "30"),
    "unknown driver": Case(raw, "floppy:{home}/a.vhd", "driver", "tap2:floppy:{home}/a.vhd,xvda,w"),
    "unknown driver, script form": Case(
        raw, "floppy:{home}/a.vhd", "not a disk that tapdisk serves", SCRIPT_FORM.format(target="floppy:{home}/a.vhd")
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


def refused(bed: Bed, disks: list[str], create: str = CREATE) -> list[str]:
    """The output of a creation that must fail and leave nothing of the guest, as lines."""
    guest = Guest(bed, "wrong", "exit 0", disks=disks)
    guest.prepare()
    before = bed.run(f"cd {HOME} && find . -type f -exec sha256sum {{}} +").stdout
    result = bed.run(f"{create} {guest.config_path}", check=False, timeout=200)
    assert result.status != 0
    assert bed.run(f"cd {HOME} && find . -type f -exec sha256sum {{}} +").stdout == before
    assert bed.run(f"xl domid {guest.name}", check=False).status != 0
    assert "error detected" not in result.output
    return result.output.splitlines()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_disk_that_cannot_be_served(bed: Bed, tmp_path: Path, case: Case) -> None:
    case.make(tmp_path)
    put_tree(bed, tmp_path)
    lines = refused(bed, [case.disk.format(home=HOME)])
    print("\n".join(lines))
    telling = [line for line in lines if case.names.format(home=HOME) in line and case.words in line]
    assert len(telling) == 1, "\n".join(lines)
