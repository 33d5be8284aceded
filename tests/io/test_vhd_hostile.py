# SPDX-License-Identifier: LGPL-2.1-only
"""Corrupt images, hundreds of them: refused in words or read rightly, in bounded time and memory, and left as they are.

Each case changes one or two fields of an image that is sound, and makes the checksums right again, so that what lies
behind them is reached.
"""

import array
import hashlib
import json
import os
import random
import resource
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import vhdmake, vhdref
from tests.lib.programs import program
from tests.lib.vhdmake import DIFFERENCING, FIXED, FOOTER_FIELDS, HEADER_FIELDS, Locator, Spec
from tests.lib.vhdutil import Result

pytestmark = pytest.mark.io

SECONDS = 10
"""Of processor time for one command of the sanitizer build."""
FILE_BYTES = 256 << 20
"""No command makes a file larger than this out of an image of less than 1 MiB."""
MEMORY_MIB = 400
"""Resident, with the sanitizer's own."""

BLOCK = 64 << 10
PER_BLOCK = BLOCK // 512
SIZE = 8 * BLOCK - 1536
BAT_AT, BATMAP_AT = 3 * 512, 4 * 512
XENSERVER = Spec(creator=b"tap\0", creator_version=0x00010003)
BASE_ID = UUID(int=9)
LOCATORS = (
    Locator(b"MacX", b"file://./base.vhd"),
    Locator(b"W2ku", ".\\base.vhd".encode("utf-16-le")),
    Locator(b"W2ru", ".\\base.vhd".encode("utf-16-le")),
)


def sector(n: int) -> bytes:
    return struct.pack(">I", n) * 128


def some_blocks(numbers: list[int]) -> dict[int, dict[int, bytes]]:
    return {b: {s: sector(b * PER_BLOCK + s + 1) for s in (0, 1, 7, 8, 100, 124)} for b in numbers}


def with_batmap(raw: bytes, version: int) -> bytearray:
    """A batmap in the two sectors that the maker left between BAT and locators."""
    data = bytearray(raw)
    head = struct.pack(">8sQIIIB", b"tdbatmap", BATMAP_AT + 512, 1, version, 0xFFFFFFFF, 0)
    data[BATMAP_AT : BATMAP_AT + 1024] = head.ljust(1024, b"\0")
    return data


def differencing(version: int = 0x00010002) -> bytearray:
    spec = replace(
        XENSERVER,
        size=SIZE,
        kind=DIFFERENCING,
        block_size=BLOCK,
        blocks=some_blocks([5, 0, 7]),
        parent_uuid=BASE_ID,
        parent_name="base.vhd",
        locators=LOCATORS,
        parts=("header", "table", "batmap", "locators", "blocks"),
    )
    return with_batmap(vhdmake.image(spec), version)


def dynamic() -> bytearray:
    spec = Spec(size=SIZE, block_size=BLOCK, blocks=some_blocks([2, 1, 7]), max_bat=300)
    return bytearray(vhdmake.image(spec))


def fixed() -> bytearray:
    return bytearray(vhdmake.image(Spec(size=2 * BLOCK, kind=FIXED, block_size=BLOCK, blocks=some_blocks([0]))))


KINDS: dict[str, Callable[[], bytearray]] = {"differencing": differencing, "dynamic": dynamic, "fixed": fixed}


@dataclass(frozen=True)
class Case:
    """A corrupt image, and what was done to it."""

    number: int
    what: str
    data: bytes


class Corrupter:
    """Makes corrupt images from sound ones."""

    def __init__(self, good: bytearray, rng: random.Random) -> None:
        self.good, self.rng = good, rng
        self.is_fixed = good[:8] != b"conectix"

    def value(self, length: int) -> bytes:
        """Of a field of so many bytes: what tempts."""
        rng, end = self.rng, len(self.good)
        numbers = [0, 1, 2, 3, 511, 512, 513, 1024, 1536, 2048, 4096, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFE00]
        numbers += [end, end - 512, end - 511, end // 512, end // 512 - 1, BLOCK, 2 * BLOCK, SIZE, SIZE + 512]
        numbers += [1 << 62, (1 << 63) - 512, 1 << 63, (1 << 64) - 512, (1 << 64) - 1, 2040 << 30, 1 << 41]
        if rng.random() < 0.25:
            return rng.randbytes(length)
        return (rng.choice(numbers) & (1 << 8 * length) - 1).to_bytes(length, "big")

    def footer(self, data: bytearray) -> str:
        """A field of one footer or both."""
        rng = self.rng
        name = rng.choice([x for x in FOOTER_FIELDS if x not in ("cookie", "checksum")])
        offset, length = FOOTER_FIELDS[name]
        value = self.value(length)
        tail = len(data) - 512
        places = [tail] if self.is_fixed else rng.choice([[0], [tail], [0, tail]])
        for at in places:
            raw = bytearray(data[at : at + 512])
            raw[offset : offset + length] = value
            data[at : at + 512] = vhdmake.fix_checksum(bytes(raw), 64)
        return f"footer {name}={value.hex()} at {places}"

    def header(self, data: bytearray) -> str:
        """A field of the header, or of a locator in it."""
        rng = self.rng
        name = rng.choice([x for x in HEADER_FIELDS if x not in ("cookie", "checksum")] + ["locators"] * 4)
        at, length = HEADER_FIELDS[name]
        if name == "locators":
            offset, length = rng.choice([(0, 4), (4, 4), (8, 4), (16, 8)])
            at += rng.randrange(3) * 24 + offset
        raw = bytearray(data[512:1536])
        raw[at : at + length] = self.value(length)
        data[512:1536] = vhdmake.fix_checksum(bytes(raw), 36)
        return f"header {name} byte {at}={raw[at : at + length][:16].hex()}"

    def bat(self, data: bytearray) -> str:
        """An entry."""
        entry = self.rng.randrange(8)
        value = self.value(4)
        if self.rng.random() < 0.4:
            value = struct.pack(">I", self.rng.randrange(len(data) // 512 + 2))
        data[BAT_AT + 4 * entry : BAT_AT + 4 * entry + 4] = value
        return f"BAT {entry}={value.hex()}"

    def batmap(self, data: bytearray) -> str:
        """The batmap's header or its first bytes, the checksum right or not."""
        offset, length = self.rng.choice([(8, 8), (16, 4), (20, 4), (24, 4), (28, 1), (29, 1), (512, 4)])
        value = self.value(length)
        data[BATMAP_AT + offset : BATMAP_AT + offset + length] = value
        if self.rng.random() < 0.5:
            total = sum(data[BATMAP_AT + 512 : BATMAP_AT + 1024])
            struct.pack_into(">I", data, BATMAP_AT + 24, ~total & 0xFFFFFFFF)
        return f"batmap byte {offset}={value.hex()}"

    def bitmap(self, data: bytearray) -> str:
        """A block's bitmap."""
        used = [x for x in struct.unpack_from(">8I", data, BAT_AT) if x * 512 + 512 < len(data)]
        if not used:
            return "no bitmap"
        at = self.rng.choice(used) * 512
        data[at : at + 16] = self.rng.randbytes(16)
        return f"bitmap at {at}"

    def locator_data(self, data: bytearray) -> str:
        """The names of the parent."""
        at = self.rng.choice([BATMAP_AT + 1024, BATMAP_AT + 1536, BATMAP_AT + 2048])
        start = at + self.rng.randrange(12)
        data[start : start + 8] = self.rng.choice([b"\0" * 8, b"\xff" * 8, b"/../../.", self.rng.randbytes(8)])
        return f"locator data at {start}"

    def length(self, data: bytearray) -> str:
        """The file's."""
        if self.rng.random() < 0.3:
            data += bytes(self.rng.choice([1, 511, 512, 4096, 70000]))
        else:
            del data[self.rng.choice([0, 1, 511, 512, 1000, 1535, 1537, 2100, self.rng.randrange(len(data))]) :]
        return f"length={len(data)}"

    def case(self, number: int) -> Case:
        """One or two faults."""
        data = bytearray(self.good)
        kinds = [self.footer]
        if not self.is_fixed:
            kinds += [self.footer, self.header, self.header, self.header, self.bat, self.bat, self.bitmap]
        if data[BATMAP_AT : BATMAP_AT + 8] == b"tdbatmap":
            kinds += [self.batmap, self.locator_data]
        what = [self.rng.choice(kinds)(data) for _ in range(self.rng.choice([1, 1, 2]))]
        if self.rng.random() < 0.1:
            what.append(self.length(data))
        return Case(number, "; ".join(what), bytes(data))


def limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))


def command(name: str, *args: str | Path | int) -> Result:
    """Runs a program within the limits; a signal, a finding of the sanitizers or too much memory fails."""
    env = dict(os.environ, XENBLK_CONFIG="/nonexistent/xenblk-config")
    env["ASAN_OPTIONS"] = f"exitcode=99:allocator_may_return_null=1:quarantine_size_mb=16:hard_rss_limit_mb={MEMORY_MIB}"
    env["UBSAN_OPTIONS"] = "exitcode=99"
    argv = [str(program(name)), *map(str, args)]
    result = subprocess.run(argv, env=env, input=b"", capture_output=True, timeout=60, check=False, preexec_fn=limits)
    assert result.returncode in (0, 1, 2, 63), f"{argv}: {result.returncode}: {result.stderr.decode(errors='replace')}"
    return result


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def message_of(result: Result, names: tuple[Path, ...], prefix: str = "vhd-util: ") -> str:
    """What a command said that refused: one line that names a file and says more than that."""
    lines = result.stderr.decode(errors="replace").splitlines()
    last = [line for line in lines if ": warning: " not in line]
    assert len(last) == 1 and last[0].startswith(prefix), lines
    text = last[0].removeprefix(prefix)
    assert any(text.startswith(f"{name}: ") and len(text) > len(str(name)) + 12 for name in names), text
    return text


def disk_of(path: Path) -> bytes | None:
    """As the independent reader sees it; None if it can't."""
    try:
        chain = vhdref.Chain(path)
        return chain.read(0, chain.size) if chain.size <= FILE_BYTES else None
    except (vhdref.VhdError, ValueError, struct.error, LookupError, ArithmeticError, MemoryError):
        return None


def read_only_use(path: Path, base: Path) -> bool:
    """Looks at the image in all ways. Whether it was accepted."""
    files = digests(path.parent)
    checked = command("vhd-util", "check", "-n", path, "-p", "-b")
    if checked.returncode:
        message_of(checked, (path, base))
    query = command("vhd-util", "query", "-n", path, "--json")
    opened = command("tests/tool-disk", "--readonly", f"vhd:{path}")
    if checked.returncode == 2 and b"batmap: block" in checked.stderr:
        pass  # found by -b alone, which opens don't have the time for
    elif checked.returncode:
        # what isn't sound is neither opened nor read
        assert opened.returncode == 1, checked.stderr
        message_of(query, (path, base))
        message_of(opened, (path, base), "tool-disk: ")
        assert command("vhd-util", "read", "-n", path, "-r", 0).returncode == 1
        standalone = command("tapdisk", "--read-only", "--run", "true", f"vhd:{path}")
        assert standalone.returncode == 1 and str(path.parent).encode() in standalone.stderr
    else:
        assert (query.returncode, opened.returncode) == (0, 0), (query.stderr, opened.stderr)
        size = json.loads(query.stdout)["virtual_size"]
        if size <= FILE_BYTES:
            got = command("vhd-util", "read", "-n", path, "-R", 0, "-c", size)
            assert got.returncode == 0, got.stderr
            assert got.stdout == disk_of(path)
    command("vhd-util", "read", "-n", path, "-p", "-b", 0, "-e", 0, "-c", 2)
    command("vhd-util", "map", "-n", path, "--json")
    command("vhd-util", "scan", "-c", "-m", path)
    assert digests(path.parent) == files
    return checked.returncode == 0


def only_copy_was_behind(before: bytes, after: bytes) -> bool:
    """An open for writing, which comes before what refuses a command, has given the footer copy what the one at the end says."""
    if after[:512] == before[:512] or after[512:] != before[512:]:
        return False
    copy, end, now = (vhdref.Footer.parse(raw) for raw in (before[:512], before[-512:], after[:512]))
    return now == replace(end, hidden=end.hidden or copy.hidden)


def writing_use(path: Path, data: bytes, base: Path) -> None:
    """Each command changes the image only if it succeeds, and then the disk is as it was."""
    disk = disk_of(path)
    commands: list[tuple[str, ...]] = [
        ("repair", "-n", str(path)),
        ("snapshot", "-n", str(path.parent / "child.vhd"), "-p", str(path), "-e"),
        ("resize", "-n", str(path), "-s", "1"),
        ("set", "-n", str(path), "-f", "hidden", "-v", "1"),
        ("modify", "-n", str(path), "-p", str(base)),
        ("coalesce", "-n", str(path)),
    ]
    for args in commands:
        path.write_bytes(data)
        if "user.xenblk.children" in os.listxattr(path):
            os.removexattr(path, "user.xenblk.children")
        before = digests(path.parent)
        result = command("vhd-util", *args)
        if result.returncode:
            assert result.returncode == 1, result.stderr
            message_of(result, (path, base, path.parent / "child.vhd"))
            if only_copy_was_behind(data, path.read_bytes()):
                path.write_bytes(data)
            assert digests(path.parent) == before, args
        elif disk is not None and path.stat().st_size <= FILE_BYTES:
            after = disk_of(path)
            assert after is not None and after[: len(disk)] == disk[: len(after)], args
        (path.parent / "child.vhd").unlink(missing_ok=True)
        if args[0] == "coalesce":
            vhdmake.make(base, BASE)


BASE = replace(XENSERVER, size=SIZE, block_size=BLOCK, uuid=BASE_ID, blocks=some_blocks([0, 3]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_images(tmp_path: Path, kind: str) -> None:
    seed = int(os.environ.get("XENBLK_SEED") or random.randrange(1 << 32))
    count = int(os.environ.get("XENBLK_CASES") or {"differencing": 30, "dynamic": 15, "fixed": 6}[kind])
    print(f"XENBLK_SEED={seed}")
    base = vhdmake.make(tmp_path / "base.vhd", BASE)
    path = tmp_path / "a.vhd"
    path.write_bytes(KINDS[kind]())
    assert read_only_use(path, base)
    vhdmake.set_footer(path, "current size", bytes(8), front=kind != "fixed")
    assert not read_only_use(path, base)
    corrupter = Corrupter(KINDS[kind](), random.Random(seed))
    for number in range(count):
        case = corrupter.case(number)
        print(f"case {number}: {case.what}", flush=True)
        path.write_bytes(case.data)
        read_only_use(path, base)
        if number % 3 == 0:
            writing_use(path, case.data, base)


U32, U64 = struct.Struct(">I").pack, struct.Struct(">Q").pack
LYING_BATMAPS: list[tuple[str, int, bytes, int]] = [
    ("batmap size", 16, U32(0), 2),
    ("batmap size", 16, U32(0xFFFFFFFF), 2),
    ("batmap offset", 16, U32(4000), 2),
    ("batmap offset", 8, U64(0), 2),
    ("batmap offset", 8, U64(BATMAP_AT + 1), 2),
    ("batmap offset", 8, U64(1 << 40), 2),
    ("batmap offset", 8, U64((1 << 64) - 512), 2),
    ("overlap", 8, U64(BATMAP_AT), 2),
    ("overlap", 8, U64(512), 2),
    ("inside the batmap", 8, U64(BATMAP_AT + 6 * 512), 2),
    ("version", 20, U32(0x00010003), 63),
    ("encrypted", 29, b"\1", 63),
]


@pytest.mark.parametrize(("words", "at", "value", "status"), LYING_BATMAPS)
def test_a_batmap_that_lies_is_named(tmp_path: Path, words: str, at: int, value: bytes, status: int) -> None:
    base = vhdmake.make(tmp_path / "base.vhd", BASE)
    path = tmp_path / "a.vhd"
    data = differencing()
    data[BATMAP_AT + at : BATMAP_AT + at + len(value)] = value
    path.write_bytes(data)
    assert not read_only_use(path, base)
    checked = command("vhd-util", "check", "-n", path)
    assert (checked.returncode, words in message_of(checked, (path,))) == (status, True), checked.stderr
    assert command("vhd-util", "repair", "-n", path).returncode == 1
    assert path.read_bytes() == data


@pytest.mark.parametrize("version", [0x00010001, 0x00010002])
def test_batmaps_of_both_versions(tmp_path: Path, version: int) -> None:
    """1.1 sums its bytes as signed; a sum that is wrong makes the map count as empty."""
    path = tmp_path / "a.vhd"
    vhdmake.make(tmp_path / "base.vhd", BASE)
    data = bytearray(differencing(version))
    full = struct.unpack_from(">8I", data, BAT_AT)[0] * 512
    data[full : full + 16] = b"\xff" * 16
    data[BATMAP_AT + 512] = 0x80
    total = 0x80 - 256 if version == 0x00010001 else 0x80
    for right in (True, False):
        struct.pack_into(">I", data, BATMAP_AT + 24, ~(total + (not right)) & 0xFFFFFFFF)
        path.write_bytes(data)
        checked = command("vhd-util", "check", "-n", path, "-b")
        assert (checked.returncode, b"batmap: checksum" in checked.stderr) == (0, not right)
        bit = command("vhd-util", "read", "-n", path, "-j", 0).stdout
        assert bit == b"batmap for block 0: %d\n" % right
        got = command("vhd-util", "read", "-n", path, "-R", 0, "-c", SIZE)
        assert got.stdout == disk_of(path)


def test_nothing_is_ever_taken_for_raw(tmp_path: Path) -> None:
    for name, data in (("zeros", bytes(1 << 20)), ("text", b"conecti" * 1000), ("short", b"conectix")):
        (tmp_path / name).write_bytes(data)
        for args in (["check"], ["query", "-v"], ["read", "-r", "0"], ["repair"], ["resize", "-s", "9"]):
            result = command("vhd-util", args[0], "-n", tmp_path / name, *args[1:])
            assert result.returncode == (2 if args[0] == "check" else 1)
            message_of(result, (tmp_path / name,))
        assert command("tests/tool-disk", f"vhd:{tmp_path / name}").returncode == 1
        assert (tmp_path / name).read_bytes() == data


def test_the_largest_table_of_small_blocks_stays_within_bounds(tmp_path: Path) -> None:
    """All that a file of 1 TiB, most of it holes, can claim, its blocks from the last to the first."""
    entries, block = 1 << 24, 64 << 10
    foot = vhdmake.footer(Spec(size=entries * block, block_size=block))
    header = bytearray(vhdmake.image(Spec(size=block, block_size=block))[512:1536])
    struct.pack_into(">I", header, 28, entries)
    first, step = (1536 + 4 * entries) // 512, (block + 512) // 512
    table = array.array("I", range(first + step * (entries - 1), first - 1, -step))
    table.byteswap()
    path = tmp_path / "a.vhd"
    with path.open("wb") as file:
        file.write(foot + vhdmake.fix_checksum(bytes(header), 36))
        table.tofile(file)
        file.truncate((first + step * entries) * 512)
        file.seek(0, os.SEEK_END)
        file.write(foot)
    for args in (["check"], ["query", "-vsa"], ["read", "-r", "2000000000"]):
        result = command("vhd-util", args[0], "-n", path, *args[1:])
        assert result.returncode == 0, result.stderr
    assert command("tests/tool-disk", "--readonly", f"vhd:{path}").returncode == 0
