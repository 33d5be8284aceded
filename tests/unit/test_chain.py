# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk chain and check, on VHDs by path and by guest."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.lib import bridge, vhdutil, xenstored
from tests.lib.disk import Disk
from tests.lib.programs import program

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("libxl_binding")]

TAP_CTL = "#!/bin/sh\necho '[]'\n"


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """The leaf of three images."""
    base, middle, leaf = (tmp_path / f"{name}.vhd" for name in ("base", "middle", "leaf"))
    vhdutil.ok("create", "-n", base, "-s", 4)
    vhdutil.ok("snapshot", "-n", middle, "-p", base)
    with Disk(f"vhd:{middle}") as disk:  # the child of an empty image would be its parent's
        disk.write(0, 1, 5)
    vhdutil.ok("snapshot", "-n", leaf, "-p", middle)
    return leaf


def run(directory: Path, command: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    (directory / "tap-ctl").write_text(TAP_CTL, encoding="utf-8")
    (directory / "tap-ctl").chmod(0o755)
    environment = bridge.environment(
        XENBLK_TAP_CTL=str(directory / "tap-ctl"),
        XENBLK_VHD_UTIL=str(program("vhd-util")),
        XENSTORED_PATH=str(directory / "xenstored"),
    )
    call = [str(command), *arguments]
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_chain_is_shown_from_the_leaf(tmp_path: Path, xenblk_command: Path, chain: Path) -> None:
    done = run(tmp_path, xenblk_command, "chain", str(chain))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["DEPTH", "SIZE", "TAKES", "TYPE", "IMAGE"]
    assert [(line[0], line[1], line[3], line[4]) for line in lines[1:]] == [
        ("0", "4M", "differencing", str(chain)),
        ("1", "4M", "differencing", f"{tmp_path}/middle.vhd"),
        ("2", "4M", "dynamic", f"{tmp_path}/base.vhd"),
    ]
    [images] = json.loads(run(tmp_path, xenblk_command, "chain", "--json", str(chain)).stdout)
    assert [image["virtual_size"] for image in images] == [4 << 20] * 3


def test_a_raw_root_is_part_of_it(tmp_path: Path, xenblk_command: Path) -> None:
    (tmp_path / "root.img").write_bytes(bytes(4 << 20))
    vhdutil.ok("snapshot", "-n", tmp_path / "a.vhd", "-p", tmp_path / "root.img", "-m")
    [images] = json.loads(run(tmp_path, xenblk_command, "chain", "--json", str(tmp_path / "a.vhd")).stdout)
    assert [(image["path"], image["type"], image["virtual_size"]) for image in images[1:]] == [
        (f"{tmp_path}/root.img", "raw", 4 << 20)
    ]


def test_a_guest_has_its_chains_by_disk(tmp_path: Path, xenblk_command: Path, chain: Path) -> None:
    with xenstored.running(tmp_path / "xenstored") as store:
        store.write("/local/domain/3/name", "web")
        for number, (vdev, image) in enumerate(
            [("xvda", f"vhd:{chain}"), ("xvdb", f"vhd:{tmp_path}/base.vhd"), ("xvdc", "aio:/srv/c.img")]
        ):
            for key, value in {"dev": vdev, "params": image, "script": "/x/block-xenblk", "mode": "r"}.items():
                store.write(f"backend/vbd/3/{51712 + number}/{key}", value)
        chains = json.loads(run(tmp_path, xenblk_command, "chain", "web", "--json").stdout)
        assert [len(images) for images in chains] == [3, 1]
        chains = json.loads(run(tmp_path, xenblk_command, "chain", "web", "xvdb", "--json").stdout)
        assert [images[0]["path"] for images in chains] == [f"{tmp_path}/base.vhd"]
        done = run(tmp_path, xenblk_command, "check", "3", "xvda")
        assert (done.returncode, done.stdout) == (0, f"{chain}: valid, 3 images\n")
        assert run(tmp_path, xenblk_command, "chain", "web", "xvdc").stderr == (
            "xenblk: guest web: has no VHD there, but aio:/srv/c.img\n"
        )
        assert "tapdisk serves no disk hda of it" in run(tmp_path, xenblk_command, "chain", "web", "hda").stderr


def test_a_guest_is_not_taken_for_a_file_of_its_name(
    tmp_path: Path, xenblk_command: Path, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web").write_bytes(b"")
    chain.rename(tmp_path / "only")
    with xenstored.running(tmp_path / "xenstored") as store:
        store.write("/local/domain/3/name", "web")
        for key, value in {"dev": "xvda", "params": f"vhd:{tmp_path}/base.vhd", "script": "/x/block-xenblk"}.items():
            store.write(f"backend/vbd/3/51712/{key}", value)
        [images] = json.loads(run(tmp_path, xenblk_command, "chain", "web", "--json").stdout)
        assert images[0]["path"] == f"{tmp_path}/base.vhd"
        assert run(tmp_path, xenblk_command, "chain", "only").stderr.endswith("; the file of that name is ./only\n")
        assert run(tmp_path, xenblk_command, "chain", "./only").returncode == 0


def test_what_is_not_sound_is_named(tmp_path: Path, xenblk_command: Path, chain: Path) -> None:
    damaged = bytearray((tmp_path / "middle.vhd").read_bytes())
    damaged[512 + 16] ^= 0xFF  # the header, which its checksum covers
    (tmp_path / "middle.vhd").write_bytes(damaged)
    done = run(tmp_path, xenblk_command, "check", str(chain))
    assert done.returncode == 1 and str(chain) in done.stderr
    assert "middle.vhd" in done.stdout + done.stderr
    done = run(tmp_path, xenblk_command, "chain", str(chain))
    assert (done.returncode, done.stdout) == (1, "") and "middle.vhd" in done.stderr


def test_a_path_that_is_none_is_an_error(tmp_path: Path, xenblk_command: Path, chain: Path) -> None:
    done = run(tmp_path, xenblk_command, "chain", f"{tmp_path}/none.vhd")
    assert done.returncode == 1 and "No such file" in done.stderr
    done = run(tmp_path, xenblk_command, "check", str(chain), "xvda")
    assert done.returncode == 2 and "is an image; name a disk only after a guest" in done.stderr
