# SPDX-License-Identifier: LGPL-2.1-only
"""The series for Debian's QEMUs, as far as they can be judged without a source; tests/ioemu has the rest."""

import re
import socket
import struct
from pathlib import Path

import pytest

from tests.ioemu.drives import CASES, described
from tests.ioemu.maildiff import diffs
from tests.ioemu.qemu import JUDGED_CLEAN, SERIES, WARNING, built
from tests.ioemu.qemusource import Archive, source
from tests.ioemu.series import COVER, Series, SeriesError
from tests.lib import apt, cache, xenstored

EACH = pytest.mark.parametrize("number", sorted(SERIES))


def subject(series: Series, name: str) -> str:
    return series.text(name).partition("] ")[2].partition("\n\n")[0].replace("\n", "")


def message(series: Series, name: str) -> str:
    return series.text(name).partition("\n\n")[2].partition("\n---\n")[0]


@EACH
def test_base_is_named_the_same_in_both_places(number: int) -> None:
    base, cover = SERIES[number].base(), SERIES[number].text(COVER)
    assert set(base) == {"package", "version", "release"}
    assert base["release"] == str(number)
    assert SERIES[number].directory.name == "qemu-" + ".".join(re.findall(r"\d+", base["version"])[1:3])
    assert f"deb{number}u" in base["version"]
    assert cover.endswith(f"\nbase-version: {base['package']} {base['version']}\n")


def test_both_series_have_the_same_patches_for_the_same_reasons() -> None:
    one, other = SERIES.values()
    both = one.patches()
    # 7.2 tries refused backends again by itself
    assert other.patches() == [*both, "0008-xen-bus-try-a-refused-backend-again-when-its-nodes-c.patch"]
    for name in both:
        assert subject(one, name) == subject(other, name)
        assert message(one, name) == message(other, name)
        added = [[line for diff in diffs(series.text(name)) for line in diff.lines] for series in (one, other)]
        same = {line for line in added[0] if line[0] == "+"} & set(added[1])
        # they differ by headers' names, and by a lock that came in between
        assert len({line for line in added[0] if line[0] == "+"} ^ same) <= 2


@EACH
def test_what_is_for_a_few_is_off_by_default(number: int) -> None:
    added = "".join(
        f"{line[1:].strip()} "
        for name in SERIES[number].patches()
        for diff in diffs(SERIES[number].text(name))
        for line in diff.lines
        if line.startswith("+")
    )
    properties = re.findall(r'DEFINE_PROP_\w+\("([^"]+)".*?(\w+)\)[,;]', added)
    assert properties == [("locking", "ON_OFF_AUTO_OFF"), ("direct-host-device", "false")]


# The checks themselves


def test_cases_of_drives_differ() -> None:
    inputs = {(c.params, c.device, c.mode, c.nodes, c.options, c.drive, c.locked) for c in CASES}
    assert len({case.name for case in CASES}) == len(inputs) == len(CASES)
    assert all(case.said for case in CASES if case.opened == "nothing")


def node(drv: str, file: str, ro: bool = False, direct: bool = False) -> dict[str, object]:
    return {"drv": drv, "file": file, "ro": ro, "cache": {"direct": direct}}


@pytest.mark.parametrize(
    ("nodes", "lines"),
    [
        ([], []),
        ([node("raw", "/a"), node("file", "/a")], ["raw over file /a rw"]),
        ([node("file", "/a", ro=True), node("raw", "/a")], ["raw over file /a ro"]),
        ([node("raw", "/a", direct=True), node("host_device", "/a")], ["raw over host_device /a rw"]),
        ([node("raw", "/a", direct=True), node("nbd", "/a", direct=True)], ["raw over nbd /a rw direct"]),
        ([node("raw", "/a")], []),
    ],
)
def test_nodes_of_the_monitor_are_put_in_words(nodes: list[dict[str, object]], lines: list[str]) -> None:
    assert described(nodes) == lines


def test_words_of_the_compiler_and_of_checkpatch() -> None:
    log = "[1/2] Compiling\n../hw/block/block.c:7:3: warning: unused variable 'a' [-Wunused-variable]\n"
    assert WARNING.findall(log) == [("hw/block/block.c", "unused variable 'a' [-Wunused-variable]")]
    assert JUDGED_CLEAN.search("total: 0 errors, 0 warnings, 8 lines checked\n")
    assert not JUDGED_CLEAN.search("a:3: ERROR: code indent\ntotal: 1 errors, 0 warnings, 8 lines checked\n")


def test_base_that_the_archive_no_longer_has_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer:
        def __init__(self, directory: Path, suite: str) -> None:
            directory.mkdir()

        def update(self) -> None:
            pass

        def versions(self, package: str) -> list[str]:
            return ["1:9.9"]

    monkeypatch.setattr(cache, "root", lambda: tmp_path)
    monkeypatch.setattr("tests.ioemu.qemusource.Archive", Newer)
    with pytest.raises(SeriesError, match=r"no longer has qemu 1:7\.2\+.* but 1:9\.9: the series has to be applied"):
        source(SERIES[12].base(), "bookworm")
    assert not list(tmp_path.glob("qemu-source-bookworm-*"))


def test_what_is_built_is_built_again_if_a_patch_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(cache, "root", lambda: tmp_path)
    monkeypatch.setattr("tests.ioemu.qemu.build", lambda number, source, path: made.append(path))
    copy = Series(tmp_path / "series")
    monkeypatch.setitem(SERIES, 13, copy)
    copy.directory.mkdir()
    (copy.directory / "base").write_text("package: qemu\nversion: 1\nrelease: 13\n", encoding="ascii")
    (copy.directory / "series").write_text("0001-a.patch\n", encoding="ascii")
    for text in ("a", "a", "b"):
        (copy.directory / "0001-a.patch").write_text(text, encoding="ascii")
        built(13, tmp_path)
    assert len(made) == 2


def test_private_archive_has_sources_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = apt.Source("http://archive", "bookworm", "main")
    monkeypatch.setattr(apt, "sources", lambda suite: [place])
    Archive(tmp_path / "apt", "bookworm")
    text = (tmp_path / "apt/sources.list").read_text(encoding="utf-8")
    assert text == f"deb-src {place.line().removeprefix('deb ')}\n"


def test_watch_is_told_once(tmp_path: Path) -> None:
    with xenstored.running(tmp_path / "socket"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "socket"))
        client.sendall(struct.pack("<IIII", 4, 1, 0, 17) + b"backend/x\0token1\0")
        data = b""
        while len(data) < 16 + 3 + 16 + 17:
            data += client.recv(100)
    assert data[:19] == struct.pack("<IIII", 4, 1, 0, 3) + b"OK\0"
    assert data[19:] == struct.pack("<IIII", 15, 0, 0, 17) + b"backend/x\0token1\0"
