# SPDX-License-Identifier: LGPL-2.1-only
"""vhd-util on NBD exports, by which it reaches other formats: qcow2 behind qemu-nbd, both ways."""

import hashlib
import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.lib import nbdserver, vhdref
from tests.lib.disk import Disk
from tests.lib.expected import Expected, random_batch
from tests.lib.vhdmake import MIB
from tests.lib.vhdutil import fails, ok, run

pytestmark = pytest.mark.io

SIZE = 20 * MIB


@contextmanager
def serving(argv: list[str], socket: Path) -> Iterator[str]:
    """The URI of what a server exports at the socket that its command names."""
    with subprocess.Popen(argv) as process:
        while not socket.exists():
            assert process.poll() is None
            time.sleep(0.02)
        try:
            yield f"nbd+unix:///?socket={socket}"
        finally:
            process.terminate()
            process.wait(20)
            socket.unlink(missing_ok=True)


def qemu_nbd(image: Path, kind: str = "qcow2", *options: str) -> AbstractContextManager[str]:
    socket = image.with_suffix(".sock")
    return serving(["qemu-nbd", "-f", kind, "-k", str(socket), "-t", *options, str(image)], socket)


def qcow2(path: Path, size: int = SIZE, *, stale: bool = False) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)], check=True)
    if stale:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 255 0 {size}", path], check=True, capture_output=True)
    return path


def sha256(path: Path) -> str:
    """Of the disk in a qcow2, by QEMU."""
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    return hashlib.sha256(raw.read_bytes()).hexdigest()


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    """A chain of two with random content."""
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance, expected = random.Random(seed), Expected(SIZE // 512)
    base, leaf = tmp_path / "base.vhd", tmp_path / "leaf.vhd"
    ok("create", "-n", base, "-s", SIZE // MIB)
    for image in (base, leaf):
        if image is leaf:
            ok("snapshot", "-n", leaf, "-p", base)
        with Disk(f"vhd:{image}") as disk:
            for _ in range(4):
                expected.run(disk, random_batch(expected, chance, 10, "wwz"))
    return leaf


@pytest.mark.parametrize("stale", [False, True])
def test_vhd_to_qcow2_and_back(tmp_path: Path, leaf: Path, stale: bool) -> None:
    target = qcow2(tmp_path / "target.qcow2", stale=stale)
    with qemu_nbd(target) as uri:
        assert ok("convert", "-n", f"vhd:{leaf}", "-N", uri) == ""
        assert ok("compare", "-n", leaf, "-N", uri) == "Images are identical.\n"
        assert ok("compare", "-n", uri, "-N", leaf, "-s") == "Images are identical.\n"
        ok("convert", "-n", uri, "-N", f"vhd:{tmp_path / 'back.vhd'}")
    assert sha256(target) == vhdref.Chain(leaf).sha256() == vhdref.Chain(tmp_path / "back.vhd").sha256()
    if not stale:
        assert target.stat().st_blocks * 512 < leaf.stat().st_size + leaf.with_name("base.vhd").stat().st_size + MIB
    assert "is valid" in ok("check", "-n", tmp_path / "back.vhd", "-b")


def test_what_is_larger_ends_with_zeros(tmp_path: Path, leaf: Path) -> None:
    target = qcow2(tmp_path / "target.qcow2", SIZE + 3 * MIB, stale=True)
    with qemu_nbd(target) as uri:
        ok("convert", "-n", f"vhd:{leaf}", "-N", uri)
        assert ok("compare", "-n", leaf, "-N", uri) == "Images are identical.\n"
        result = run("compare", "-n", leaf, "-N", uri, "-s")
        assert (result.returncode, result.stdout) == (1, b"Image size mismatch!\n")


def nbdkit(raw: Path, *options: str) -> AbstractContextManager[str]:
    socket = raw.with_suffix(".sock")
    return serving(["nbdkit", "-f", "-U", str(socket), *options], socket)


def test_a_server_without_zeroes_and_extents(tmp_path: Path, leaf: Path) -> None:
    raw = tmp_path / "target.img"
    raw.write_bytes(b"\xff" * (SIZE + MIB + 4096))
    filters = ["--filter=nozero", "--filter=noextents"]
    with nbdkit(raw, *filters, "file", str(raw)) as uri:
        ok("convert", "-n", f"vhd:{leaf}", "-N", uri)
    chain = vhdref.Chain(leaf)
    assert raw.read_bytes() == chain.read(0, SIZE) + bytes(MIB + 4096)
    with nbdkit(raw, "--filter=blocksize-policy", "file", str(raw), "blocksize-minimum=4096") as uri:
        assert "blocks of 4096 bytes" in fails("convert", "-n", f"vhd:{leaf}", "-N", uri)


def test_targets_that_are_refused_stay_as_they_are(tmp_path: Path, leaf: Path) -> None:
    target = qcow2(tmp_path / "target.qcow2", SIZE - MIB, stale=True)
    before = target.read_bytes()
    with qemu_nbd(target) as uri:
        assert f"has {SIZE - MIB} bytes; vhd:{leaf} has {SIZE}" in fails("convert", "-n", f"vhd:{leaf}", "-N", uri, status=28)
    with qemu_nbd(target, "qcow2", "-r") as uri:
        assert "read-only" in fails("convert", "-n", f"vhd:{leaf}", "-N", uri)
    assert target.read_bytes() == before
    missing = f"nbd+unix:///?socket={tmp_path}/missing"
    for args in (["convert", "-n", f"vhd:{leaf}", "-N", missing], ["map", "-n", missing]):
        assert "missing" in fails(*args)
    assert "missing" in fails("compare", "-n", leaf, "-N", missing, status=2)


def test_a_difference_is_told(tmp_path: Path, leaf: Path) -> None:
    target = qcow2(tmp_path / "target.qcow2")
    with qemu_nbd(target) as uri:
        ok("convert", "-n", f"vhd:{leaf}", "-N", uri)
    was = int.from_bytes(vhdref.Chain(leaf).read(7777777, 1), "big")
    pattern = f"write -P {was ^ 1} 7777777 1"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", pattern, target], check=True, capture_output=True)
    with qemu_nbd(target) as uri:
        result = run("compare", "-n", leaf, "-N", uri)
        assert (result.returncode, result.stdout) == (1, b"Content mismatch at offset 7777777!\n")
        result = run("compare", "-n", uri, "-N", leaf, "--json")
        assert json.loads(result.stdout) == {"identical": False, "offset": 7777777, "sizes": [SIZE, SIZE]}


def test_map_of_an_export(tmp_path: Path) -> None:
    target = qcow2(tmp_path / "target.qcow2")
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P 1 {MIB} {MIB}", "-c", f"write -z {4 * MIB} {MIB}", target],
        check=True,
        capture_output=True,
    )
    with qemu_nbd(target) as uri:
        lines = ok("map", "-n", uri).splitlines()
        assert lines[0] == f"0 {MIB} hole" and lines[1] == f"{MIB} {MIB} data"
        assert lines[2].endswith((" hole", " zero"))
        extents = json.loads(ok("map", "-n", uri, "--json"))
        assert sum(e["length"] for e in extents) == SIZE
        assert [e["data"] for e in extents][:2] == [False, True]


def test_a_disk_that_is_served_by_tapdisk(tmp_path: Path, leaf: Path) -> None:
    """Its own export, while it is in use."""
    with nbdserver.serve(tmp_path, f"vhd:{leaf}") as server:
        target = qcow2(tmp_path / "target.qcow2")
        with qemu_nbd(target) as uri:
            ok("convert", "-n", server.uri, "-N", uri)
            assert ok("compare", "-n", server.uri, "-N", uri) == "Images are identical.\n"
    assert sha256(target) == vhdref.Chain(leaf).sha256()


def test_an_export_is_not_copied_onto_itself(tmp_path: Path) -> None:
    """It would be emptied first."""
    raw = tmp_path / "a.img"
    raw.write_bytes(b"x" * MIB)
    with qemu_nbd(raw, "raw") as uri:
        (tmp_path / "link").symlink_to(raw.with_suffix(".sock"))
        for source in (uri, f"{uri}&reconnect=5", f"nbd:unix:{raw.with_suffix('.sock')}", f"nbd:unix:{tmp_path}/link"):
            assert f"{source}: is both source and target" in fails("convert", "-n", source, "-N", uri)
        # tapdisk's server has its disk by any name
        other = uri.replace("///", "///other")
        assert f"{other}: is an export of the target's server" in fails("convert", "-n", other, "-N", uri)
    # refused before anything is connected
    source, target = "nbd://localhost:10893/a", "nbd://127.0.0.1:10893/a"
    assert f"{source}: is both source and target" in fails("convert", "-n", source, "-N", target)
    assert raw.read_bytes() == b"x" * MIB
