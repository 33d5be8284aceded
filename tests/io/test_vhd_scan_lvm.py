# SPDX-License-Identifier: LGPL-2.1-only
"""vhd-util scan -l of volumes that are not active: lvs and pvs are programs that print what LVM 2.03.16 prints."""

import json
from pathlib import Path

import pytest

from tests.lib.vhdmake import MIB
from tests.lib.vhdutil import Result, fails, ok, run

pytestmark = pytest.mark.io

EXTENT = 4 * MIB
PE_START = MIB


class Group:
    """A volume group of two physical volumes, which are files; all volumes are inactive."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.tools = directory / "bin"
        self.tools.mkdir()
        self.pv = [directory / "pv:0", directory / "pv 1"]
        for pv in self.pv:
            pv.write_bytes(b"\xaa" * (PE_START + 40 * EXTENT))
        self.used = [0, 0]
        self.segments: list[dict[str, str]] = []
        monkeypatch.setenv("PATH", f"{self.tools}:/usr/bin:/bin")
        self._tool("pvs", "pv", [{"pv_name": str(pv), "pe_start": str(PE_START)} for pv in self.pv])
        self._list()

    def _tool(self, name: str, what: str, rows: list[dict[str, str]]) -> None:
        text = json.dumps({"report": [{what: rows}]})
        (self.tools / f"{name}.json").write_text(text)
        (self.tools / name).write_text(f'#!/bin/sh\necho "$@" >"$0.args"\ncat "$0.json"\n')
        (self.tools / name).chmod(0o755)

    def _list(self) -> None:
        self._tool("lvs", "seg", sorted(self.segments, key=lambda s: (s["lv_name"], int(s["seg_start"]))))

    def add(self, name: str, image: bytes, pieces: list[tuple[int, int]], segtype: str = "linear") -> None:
        """A volume with this content, in pieces of (physical volume, extents)."""
        size = sum(extents for _, extents in pieces) * EXTENT
        image, start = image.ljust(size, b"\0"), 0
        for pv, extents in pieces:
            first, length = self.used[pv], extents * EXTENT
            with self.pv[pv].open("r+b") as file:
                file.seek(PE_START + first * EXTENT)
                file.write(image[start : start + length])
            self.segments.append(
                {
                    "lv_name": name,
                    "lv_size": str(size),
                    "lv_active": "",
                    "segtype": segtype,
                    "seg_start": str(start),
                    "seg_size": str(length),
                    "seg_pe_ranges": f"{self.pv[pv]}:{first}-{first + extents - 1}",
                    "vg_extent_size": str(EXTENT),
                }
            )
            self.used[pv] += extents + 1
            start += length
        self._list()


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    """VHD-base in two pieces on two physical volumes, VHD-leaf on it, VHD-thin on a raw volume, LV-raw."""
    group = Group(tmp_path, monkeypatch)
    names = {name: tmp_path / name for name in ("VHD-base", "VHD-leaf", "VHD-thin")}
    raw = tmp_path / "LV-raw"
    raw.write_bytes(bytes(8 * MIB))
    # A BAT that reaches into the second piece: 8 MiB of entries, so the first ends within.
    ok("create", "-n", names["VHD-base"], "-s", 20, "-S", 2040 * 1024)
    ok("snapshot", "-n", names["VHD-leaf"], "-p", names["VHD-base"], "-e")
    ok("snapshot", "-n", names["VHD-thin"], "-p", raw, "-m")
    ok("set", "-n", names["VHD-base"], "-f", "hidden", "-v", 1)
    group.add("VHD-base", names["VHD-base"].read_bytes()[:-512], [(0, 1), (1, 3)])
    group.add("VHD-leaf", names["VHD-leaf"].read_bytes(), [(1, 2)])
    group.add("LV-raw", raw.read_bytes(), [(0, 2)])
    group.add("VHD-thin", names["VHD-thin"].read_bytes(), [(0, 2)])
    return group


BASE = f"vhd=VHD-base capacity={20 * MIB} size={16 * MIB} hidden=1 parent=none\n"
LEAF = f"vhd=VHD-leaf capacity={20 * MIB} size={8 * MIB} hidden=0 parent=VHD-base\n"
THIN = f"vhd=VHD-thin capacity={8 * MIB} size={8 * MIB} hidden=0 parent=LV-raw\n"
RAW = f"vhd=LV-raw capacity={8 * MIB} size={8 * MIB} hidden=1 parent=none\n"


def test_the_calls_of_the_storage_manager(group: Group) -> None:
    """getAllVHDs, getVHDInfoLVM, getParentChain."""
    assert ok("scan", "-f", "-m", "VHD-*", "-l", "some-group") == BASE + LEAF + THIN
    assert ok("scan", "-f", "-l", "some-group", "-m", "VHD-leaf") == LEAF
    assert ok("scan", "-f", "-m", "VHD-leaf", "-l", "some-group", "-a") == LEAF + BASE
    assert ok("scan", "-f", "-m", "VHD-thin", "-l", "some-group", "-a") == THIN + RAW
    assert ok("scan", "-f", "-m", "VHD-*", "-l", "some-group", "-c") == BASE + LEAF + THIN
    assert (group.tools / "lvs.args").read_text().rstrip().endswith(" some-group")
    assert 'vg_name="some-group"' in (group.tools / "pvs.args").read_text()


def test_trees_and_json(group: Group) -> None:
    assert group
    tree = ok("scan", "-p", "-a", "-m", "VHD-*", "-l", "some-group")
    assert tree == RAW + "   " + THIN + BASE + "   " + LEAF
    got = {Path(i["image"]).name: i for i in json.loads(ok("scan", "--json", "-l", "some-group", "-m", "VHD-*"))}
    assert got["VHD-leaf"]["parent"] == "VHD-base" and got["VHD-base"]["physical_size"] == 16 * MIB


def test_names_of_devices_as_parents(tmp_path: Path, group: Group) -> None:
    """The locators name a parent in whatever way it was given."""
    mapper = tmp_path / "some--group-VHD--base"
    mapper.symlink_to(tmp_path / "VHD-base")
    other = tmp_path / "VHD-other"
    ok("snapshot", "-n", other, "-p", mapper, "-e")
    group.add("VHD-other", other.read_bytes(), [(1, 2)])
    assert "parent=VHD-base\n" in ok("scan", "-f", "-l", "some-group", "-m", "VHD-other")


def test_what_cannot_be_read_is_named(tmp_path: Path, group: Group) -> None:
    group.add("VHD-junk", b"junk" * 1000, [(0, 1)])
    group.add("VHD-stripes", (tmp_path / "VHD-leaf").read_bytes(), [(0, 1), (1, 1)], "striped")
    lines = ok("scan", "-f", "-c", "-l", "some-group", "-m", "VHD-*").splitlines()
    junk = next(line for line in lines if line.startswith("vhd=VHD-junk"))
    assert "scan-error=-117 error-message='VHD-junk: footer at the end: cookie" in junk and "/proc" not in junk
    stripes = next(line for line in lines if line.startswith("vhd=VHD-stripes"))
    assert "scan-error=-95" in stripes and "lvchange -ay" in stripes
    assert run("scan", "-f", "-l", "some-group", "-m", "VHD-*").returncode == 1
    group.pv[1].unlink()
    assert "No such file" in ok("scan", "-f", "-c", "-l", "some-group", "-m", "VHD-leaf")


def broken(group: Group, script: str) -> Result:
    (group.tools / "lvs").write_text(f"#!/bin/sh\n{script}\n")
    return run("scan", "-f", "-l", "some-group", "-m", "VHD-*")


def test_lvm_that_fails(tmp_path: Path, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    result = broken(group, 'echo "  Volume group not found" >&2; exit 5')
    assert result.returncode == 5 and result.stderr == (
        b"  Volume group not found\nvhd-util: lvs: ended with status 5; its message is above\n"
    )
    assert b"no report in JSON" in broken(group, "echo hello").stderr
    assert b"no report in JSON" in broken(group, 'echo \'{"report": [{"seg": 5}]}\'').stderr
    row = '{"lv_name": "VHD-x", "lv_size": "-1", "segtype": "linear", "seg_pe_ranges": "/x:9-1", "vg_extent_size": "0"}'
    assert b"scan-error" in broken(group, f"echo '{{\"report\": [{{\"seg\": [{row}]}}]}}'").stdout
    for name in ("../x", "-a", "", "a b", "x" * 200):
        assert "is not the name of a volume group" in fails("scan", "-m", "*", "-l", name)
    if not Path("/sbin/lvs").exists():
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "install lvm2" in fails("scan", "-l", "some-group", "-m", "*")
