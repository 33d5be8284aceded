# SPDX-License-Identifier: LGPL-2.1-only
"""A disk on an NBD server: other people's servers, killed ones, and ones that lie."""

import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lib import nbdfake
from tests.lib.disk import Disk, write_raw
from tests.lib.diskmodel import exercise
from tests.lib.nbdfake import FakeServer, Request, chunk, data_chunk, option_reply, simple
from tests.lib.programs import program
from tests.lib.waiting import wait_for

pytestmark = pytest.mark.io

MIB = 2048
"""Sectors in a MiB."""
ENGINES = ["uring", "posix"]


class Server:
    """A program that serves at a unix socket, or at a port."""

    def __init__(self, argv: Sequence[str | Path], where: Path | int) -> None:
        self.argv = [str(a) for a in argv]
        self.where = where
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it listens.

        Again if it ends: the kernel lets go of a killed server's locks a moment after its death. nbdkit ends with the
        thread that started it.
        """
        if isinstance(self.where, Path):
            self.where.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.argv)
        deadline = time.monotonic() + 20
        while not self.listens():
            assert time.monotonic() < deadline, self.argv
            time.sleep(0.01)
            if self.process.poll() is not None:
                self.process = subprocess.Popen(self.argv)

    def listens(self) -> bool:
        """Whether a client could connect."""
        tcp = isinstance(self.where, int)
        with socket.socket(socket.AF_INET if tcp else socket.AF_UNIX) as s:
            return s.connect_ex(("127.0.0.1", self.where) if tcp else str(self.where)) == 0

    def kill(self) -> None:
        """As a crash ends it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def qemu_nbd(image: Path, *options: str) -> Server:
    path = image.with_suffix(".sock")
    argv = ["qemu-nbd", "-f", "raw", "-k", str(path), "-t", "-e", "8", "--cache=none", "--aio=native", "--discard=unmap"]
    return Server([*argv, *options, image], path)


def nbdkit(path: Path, *options: str) -> Server:
    return Server(["nbdkit", "-f", "-U", path, *options], path)


def ours(image: Path) -> Server:
    path = image.with_suffix(".sock")
    return Server([program("tapdisk"), f"--nbd={path}", f"aio:{image}"], path)


def spec(path: Path, reconnect: int = 60, export: str = "") -> str:
    return f"nbd+unix:///{export}?socket={path}&reconnect={reconnect}"


def refused(text: str, *, readonly: bool = False) -> str:
    with pytest.raises(OSError) as error:
        Disk(text, readonly=readonly)
    return str(error.value).removeprefix("tool-disk: ").strip()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_raw(tmp_path / "a.img", 4 * MIB, {})
    return tmp_path / "a.img"


SERVERS: dict[str, Callable[[Path], Server]] = {
    "qemu-nbd": qemu_nbd,
    "nbdkit": lambda image: nbdkit(image.with_suffix(".sock"), "file", str(image)),
    "simple replies": lambda image: nbdkit(image.with_suffix(".sock"), "--no-sr", "file", str(image)),
    "tapdisk": ours,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", SERVERS)
def test_what_is_written_is_what_is_read(image: Path, kind: str, engine: str) -> None:
    with SERVERS[kind](image), Disk(f"nbd:unix:{image.with_suffix('.sock')}", engine=engine) as disk:
        assert (disk.sectors, disk.depth) == (4 * MIB, 1)
        exercise(disk, random.Random(kind), 200, large=4096)
        assert disk.flush() == "ok"


@pytest.mark.parametrize("kind", SERVERS)
def test_a_write_that_is_durable_at_once_is_answered(image: Path, kind: str) -> None:
    commands = [f"{what} 4k 64k" for what in ("write -f -P 5", "write -f -z", "write -f -z -u", "write -f -P 6", "read -P 6")]
    load = "qemu-io -f raw " + " ".join(f"-c '{command}'" for command in commands) + ' "$uri"'
    with SERVERS[kind](image):
        argv = [str(program("tapdisk")), "--run", load, spec(image.with_suffix(".sock"))]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0 and done.stdout.count("65536/65536 bytes") == 5, done


@pytest.mark.parametrize("engine", ENGINES)
def test_status_is_the_server_s(image: Path, engine: str) -> None:
    with qemu_nbd(image), Disk(spec(image.with_suffix(".sock")), engine=engine) as disk:
        for sector in range(0, 1000 * 8, 16):
            assert disk.write(sector, 8, 1) == "ok"
        assert disk.status(0, 8000) == [(8, "data"), (8, "hole+zero")] * 500
    with nbdkit(image.with_suffix(".sock"), "--no-sr", "file", str(image)), Disk(
        spec(image.with_suffix(".sock"))
    ) as disk:
        assert disk.batch(["s 0 8"]) == ["err 95"]


def test_an_export_has_a_name(image: Path) -> None:
    path = image.with_suffix(".sock")
    with qemu_nbd(image, "-x", "a b/%"):
        with Disk(f"nbd:unix:{path}:exportname=a b/%") as disk:
            assert disk.sectors == 4 * MIB
        with Disk(f"nbd+unix:///a%20b/%25?socket={path}") as disk:
            assert disk.sectors == 4 * MIB
        assert refused(spec(path, export="other")).startswith(f'{spec(path, export="other")}: has no export "other"')


def test_a_server_at_a_port(image: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    assert "Connection refused" in refused(f"nbd://127.0.0.1:{port}/")
    argv = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "file", str(image)]
    with Server(argv, port) as server, Disk(f"nbd://localhost:{port}/?reconnect=20") as disk:
        exercise(disk, random.Random(port), 50)
        server.kill()
        server.start()
        assert disk.write(0, 1, 1000) == "ok"
        assert disk.read(0, 1) == [1000]


def test_requests_are_in_flight_together(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with nbdkit(path, "--filter=delay", "memory", "1M", "delay-read=1000ms", "-t", "64"), Disk(spec(path)) as disk:
        begin = time.monotonic()
        assert disk.batch([f"r {8 * i} 8" for i in range(64)]) == ["0 0 0 0 0 0 0 0"] * 64
        assert time.monotonic() - begin < 30, "one after the other it is 64 s"


def test_a_server_s_limits_are_kept_to(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def limits(least: str, most: str) -> Server:
        return nbdkit(
            path, "--filter=blocksize-policy", "memory", "16M",
            f"blocksize-minimum={least}", f"blocksize-maximum={most}", f"blocksize-preferred={'8K' if least == '8K' else '4K'}",
            "blocksize-error-policy=error",
        )  # fmt: skip

    with limits("512", "64K"), Disk(spec(path), requests=4) as disk:
        assert disk.batch([f"w {s} 4096 7" for s in range(0, 16 * MIB, 4096)]) == ["ok"] * 8
        assert disk.read(4096, 4096) == [7] * 4096
        assert disk.zero(8, 8192) == "ok"
        assert disk.read(0, 4096) == [7] * 8 + [0] * 4088
    with limits("4K", "32M"), Disk(spec(path)) as disk:
        assert disk.write(8, 16, 7) == "ok"
        assert disk.write(1, 1, 7) == "err 22"
    with limits("8K", "32M"):
        assert "minimum block size 8192: must be a power of two, at most 4096" in refused(spec(path))


@pytest.mark.parametrize(("name", "number"), [("EPERM", 1), ("EIO", 5), ("ENOSPC", 28), ("EINVAL", 22)])
def test_the_server_s_errors_are_the_disk_s(tmp_path: Path, name: str, number: int) -> None:
    path = tmp_path / "s"
    choices: list[list[str]] = [[], ["--no-sr"]]
    for options in choices:
        with nbdkit(
            path, *options, "--filter=error", "memory", "1M", f"error={name}", "error-pread-rate=0",
            "error-pwrite-rate=100%", "error-zero-rate=100%", "error-trim-rate=100%",
        ), Disk(spec(path)) as disk:  # fmt: skip
            answers = disk.batch(["r 0 1", "w 0 8 1", "r 8 1", "z 0 8", "d 0 8", "f"])
            assert answers == ["0", f"err {number}", "0", f"err {number}", f"err {number}", "ok"]
            disk.batch([f"w {s} 8 1" for s in range(0, 1024, 8)])
            assert disk.read(0, 1024) == [0] * 1024


def test_a_readonly_export_is_for_reading(image: Path) -> None:
    path = image.with_suffix(".sock")
    with qemu_nbd(image, "-r"):
        assert "the export is read-only; open it read-only (-R)" in refused(spec(path))
        with Disk(spec(path), readonly=True) as disk:
            assert disk.read(0, 8) == [0] * 8


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["qemu-nbd", "nbdkit", "tapdisk"])
def test_a_killed_server_costs_time_and_no_errors(image: Path, kind: str, engine: str) -> None:
    """Killed at any moment, also while it is idle; what was answered is there."""
    rng = random.Random(kind)
    seeds = [0] * (4 * MIB)
    with (
        ThreadPoolExecutor(1) as executor,
        SERVERS[kind](image) as server,
        Disk(spec(image.with_suffix(".sock")), engine=engine) as disk,
    ):

        def restart(delay: float) -> None:
            time.sleep(delay)
            server.kill()
            server.start()

        for seed in range(1, 9):
            sectors = rng.sample(range(0, 4 * MIB, 64), 100)
            commands = [f"w {s} 64 {seed}" if s % 128 else f"r {s} 64" for s in sectors] + ["f"]
            expected = ["ok" if s % 128 else " ".join(["%d" % seeds[s]] * 64) for s in sectors] + ["ok"]
            restarted = executor.submit(restart, rng.choice([0, 0.001, 0.003, 0.01]))
            assert disk.batch(commands) == expected
            restarted.result()
            for s in sectors:
                seeds[s : s + 64] = [seed if s % 128 else seeds[s]] * 64
        for s in range(0, 4 * MIB, 2048):
            assert disk.read(s, 2048) == seeds[s : s + 2048]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_stays_away_fails_requests_until_it_is_back(image: Path, engine: str) -> None:
    with qemu_nbd(image) as server, Disk(spec(image.with_suffix(".sock"), reconnect=1), engine=engine, requests=4) as disk:
        assert disk.write(0, 8, 1) == "ok"
        begin = time.monotonic()
        server.kill()
        assert disk.batch(["r 0 8"] * 20 + ["w 8 8 2", "f"]) == ["err 107"] * 22
        assert 0.9 < time.monotonic() - begin < 30
        assert disk.batch(["r 0 8"]) == ["err 107"]
        server.start()
        assert disk.batch(["r 0 8"] * 20)[-1] == "1 1 1 1 1 1 1 1"
        assert disk.read(0, 8) == [1] * 8


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_host_without_power_is_noticed(tmp_path: Path, acknowledged: bool) -> None:
    """It had the request, or never got it: nothing comes, and the connection does not end."""
    dark = threading.Event()

    def answer(request: Request) -> bytes | None:
        if request.connection == 0 and request.type == (nbdfake.READ if acknowledged else nbdfake.WRITE):
            reply = server.serve(request) if request.type == nbdfake.WRITE else b""
            if reply:
                server.open[0].sendall(reply)
            nbdfake.lose_power(server.open[0])
            dark.set()
            return b""
        return server.serve(request)

    with FakeServer(tmp_path / "s", tcp=True, answer=answer) as server:
        with Disk(f"nbd://127.0.0.1:{server.port}/") as disk:
            assert disk.write(0, 1, 5) == "ok"
            # Its answer comes before the power goes.
            assert acknowledged or dark.wait(10)
            begin = time.monotonic()
            assert disk.read(0, 1) == [5]
            assert 20 < time.monotonic() - begin < 40
        assert server.connections == 2
        server.open[0].shutdown(socket.SHUT_RDWR)


def test_an_export_that_shrank_is_not_taken(tmp_path: Path) -> None:
    with FakeServer(tmp_path / "s") as server, Disk(spec(server.path, reconnect=1)) as disk:
        assert disk.write(0, 1, 5) == "ok"
        server.size = 1 << 19
        server.answer = lambda r: None
        assert disk.batch(["r 0 1"]) == ["err 107"]
        assert server.connections > 1
        server.size = 1 << 20
        server.answer = None
        assert disk.batch(["r 0 1", "r 2047 1"])[1] in ("0", "err 107")
        assert disk.read(0, 1) == [5]


def test_closing_flushes_what_was_written(tmp_path: Path) -> None:
    for structured in (True, False):
        with FakeServer(tmp_path / "s", structured=structured) as server:
            with Disk(spec(server.path)) as disk:
                assert disk.write(0, 1, 5) == "ok"
            with Disk(spec(server.path)) as disk:
                assert disk.write(0, 1, 5) == "ok"
                assert disk.flush() == "ok"
                assert disk.read(0, 1) == [5]
            # who goes does not wait for the server to have heard of it
            wait_for(lambda: len(server.requests) == 7, "seven requests", 20)
            types = [(r.connection, r.type) for r in server.requests]
            assert types == [(0, 1), (0, 3), (0, 2), (1, 1), (1, 3), (1, 0), (1, 2)]


def test_closing_says_that_the_last_writes_may_be_lost(tmp_path: Path) -> None:
    with FakeServer(tmp_path / "s", answer=lambda r: simple(r, 5 if r.type == nbdfake.FLUSH else 0)) as server:
        with pytest.raises(OSError, match="final flush: Input/output error"), Disk(spec(server.path)) as disk:
            assert disk.write(0, 1, 5) == "ok"


def test_a_server_that_goes_down_is_waited_for(tmp_path: Path) -> None:
    """ESHUTDOWN is no error of the disk."""

    def answer(request: Request) -> bytes | None:
        return simple(request, 108) if request.connection < 3 else server.serve(request)

    with FakeServer(tmp_path / "s", answer=answer) as server, Disk(spec(server.path)) as disk:
        assert disk.batch(["w 0 8 1", "w 8 8 2", "f"]) == ["ok"] * 3
        assert disk.read(0, 16) == [1] * 8 + [2] * 8


def test_old_options_do_too(tmp_path: Path) -> None:
    """EXPORT_NAME in place of GO, with and without its zeroes."""
    for flags in (1, 3):
        greeting = FakeServer.greeting[:16] + struct.pack(">H", flags)
        with FakeServer(tmp_path / "s", greeting=greeting, has_go=False, structured=False) as server:
            with Disk(spec(server.path)) as disk:
                exercise(disk, random.Random(1), 50)


MAGIC = FakeServer.greeting


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is no NBD server, or a broken one: its first bytes are others"),
        (b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53" + bytes(136), "speaks an old form of NBD"),
        (MAGIC[:16] + b"\0\2", "speaks an old form of NBD"),
    ],
)
def test_another_greeting_is_refused(tmp_path: Path, greeting: bytes, message: str) -> None:
    with FakeServer(tmp_path / "s", greeting=greeting) as server:
        assert refused(spec(server.path)).startswith(f"{spec(server.path)}: {message}")


GO, CONTEXT = nbdfake.OPT_GO, nbdfake.OPT_SET_CONTEXT


@pytest.mark.parametrize(
    ("option", "reply", "message"),
    [
        (GO, bytes(20), "no reply to what it was asked"),
        (GO, option_reply(8, 1), "no reply to what it was asked"),
        (GO, option_reply(GO, 3, b"", 0xFFFFFFFF), "a reply to an option is too long"),
        (GO, option_reply(GO, 3, b"\0"), "information of a wrong length"),
        (GO, option_reply(GO, 3, bytes(10)), "information of a wrong length"),
        (GO, option_reply(GO, 3, b"\0\3" + bytes(10)), "information of a wrong length"),
        (GO, option_reply(GO, 3, b"\0\2more") * 100, "its replies don't end"),
        (GO, option_reply(GO, 1), "an export without a size"),
        (GO, option_reply(GO, 2), "an export without a size"),
        (GO, option_reply(GO, 0x80000005, b"no"), "wants TLS, which tapdisk does not speak"),
        (GO, option_reply(GO, 0x80000006, b"who\x1b[2J\n"), 'has no export "": who?[2J?'),
        (GO, option_reply(GO, 0x80000002, b"x" * 8192), 'refuses export "": ' + "x" * 200),
        (GO, option_reply(GO, 0x80000002), 'refuses export "": it doesn\'t say why'),
        (CONTEXT, option_reply(CONTEXT, 4, b"\0\0\0\1base:alloc"), "a context that it was not asked for"),
        (CONTEXT, option_reply(CONTEXT, 4), "a context that it was not asked for"),
        (nbdfake.OPT_STRUCTURED, option_reply(8, 2), "a reply of a wrong type"),
        (nbdfake.OPT_STRUCTURED, b"", "ends the connection in the handshake"),
    ],
)
def test_a_handshake_without_sense_is_refused(tmp_path: Path, option: int, reply: bytes, message: str) -> None:
    with FakeServer(tmp_path / "s", option=lambda o, _: reply if o == option else None) as server:
        text = refused(spec(server.path)).removeprefix(f"{spec(server.path)}: ").strip()
        assert text.removeprefix("is no NBD server, or a broken one: ") == message


@pytest.mark.parametrize(
    ("size", "blocks", "message"),
    [
        (0, None, "size 0: must be a positive multiple of 512"),
        (1000, None, "size 1000: must be a positive multiple of 512"),
        (1 << 20, (0, 1, 1 << 20), "minimum block size 0: must be a power of two"),
        (1 << 20, (3, 1, 1 << 20), "minimum block size 3: must be a power of two"),
        (512, (4096, 4096, 1 << 20), "size 512: must be a positive multiple of 4096"),
        (1 << 20, (1, 1, 100), "maximum block size 100: must be at least 512"),
    ],
)
def test_an_export_that_is_no_disk_is_refused(
    tmp_path: Path, size: int, blocks: tuple[int, int, int] | None, message: str
) -> None:
    with FakeServer(tmp_path / "s", size=size, blocks=blocks) as server:
        assert message in refused(spec(server.path))


@pytest.mark.slow
def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with FakeServer(tmp_path / "s", greeting=b"") as server:
        begin = time.monotonic()
        assert refused(spec(server.path)) == f"{spec(server.path)}: does not answer in the handshake"
        assert time.monotonic() - begin < 60


LIES: dict[str, Callable[[Request], bytes]] = {
    "no reply": lambda r: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "another cookie": lambda r: simple(r)[:8] + bytes(8),
    "a cookie of the future": lambda r: simple(r)[:8] + struct.pack(">Q", r.cookie + (1 << 32)),
    "a slot past the last": lambda r: simple(r)[:8] + struct.pack(">Q", r.cookie | 0xFFFF),
    "a simple reply to a read": lambda r: simple(r, 0, bytes(r.length)),
    "no data": lambda r: chunk(r, 0),
    "too little data": lambda r: data_chunk(r, r.offset, bytes(r.length - 1)),
    "too much data": lambda r: data_chunk(r, r.offset, bytes(r.length + 1)),
    "data before": lambda r: data_chunk(r, r.offset - 512, bytes(r.length)),
    "data past the end": lambda r: data_chunk(r, r.offset + 512, bytes(r.length)),
    "data far away": lambda r: data_chunk(r, 1 << 63, bytes(r.length)),
    "the same data twice": lambda r: data_chunk(r, r.offset, bytes(512), last=False) * 2 + chunk(r, 0),
    "more than all": lambda r: data_chunk(r, r.offset, bytes(r.length), last=False) * 2 + chunk(r, 0),
    "a huge chunk": lambda r: chunk(r, 1, struct.pack(">Q", r.offset), length=0xFFFFFFFF),
    "a chunk without an offset": lambda r: chunk(r, 1, bytes(7)),
    "a hole of another length": lambda r: chunk(r, 2, struct.pack(">QI", r.offset, r.length)[:11]),
    "a huge hole": lambda r: chunk(r, 2, struct.pack(">QI", r.offset, 0xFFFFFFFF)),
    "a hole past the end": lambda r: chunk(r, 2, struct.pack(">QI", r.offset + 1, r.length)),
    "a status": lambda r: chunk(r, 5, struct.pack(">III", 7, r.length, 0)),
    "an unknown chunk": lambda r: chunk(r, 99, bytes(8)),
    "an error without a number": lambda r: chunk(r, 0x8001, b"\0\0\0\5"),
    "an error that is none": lambda r: chunk(r, 0x8001, bytes(6)),
    "a huge error": lambda r: chunk(r, 0x8001, b"\0\0\0\5\0\0", length=0x7FFFFFFF),
    "an end with a payload": lambda r: chunk(r, 0, bytes(4)),
    "two answers": lambda r: data_chunk(r, r.offset, bytes(r.length)) * 2,
    "half a head": lambda r: simple(r)[:10],
}


@pytest.mark.parametrize(("lie", "engine"), [(lie, ENGINES[i % 2]) for i, lie in enumerate(LIES)])
def test_a_server_that_lies_loses_its_connection(tmp_path: Path, lie: str, engine: str) -> None:
    """The next connection answers as it should, and so does the disk."""

    def answer(request: Request) -> bytes | None:
        if request.type != nbdfake.READ or request.connection == 2:
            return server.serve(request)
        if request.connection > 0 or lie == "half a head":
            server.answer = None
        return LIES[lie](request)

    with FakeServer(tmp_path / "s", answer=answer) as server, Disk(spec(server.path), engine=engine) as disk:
        assert disk.batch([f"w {s} 8 5" for s in range(0, 64, 8)]) == ["ok"] * 8
        if lie == "half a head":
            threading.Timer(0.2, lambda: hang_up(server)).start()
        for _ in range(2):
            got = disk.batch([f"r {s} 8" for s in range(8, 64, 8)])
        if lie != "two answers":
            assert got == ["5 5 5 5 5 5 5 5"] * 7
        assert disk.read(8, 8) == [5] * 8


def hang_up(server: FakeServer) -> None:
    """Ends the connections that are open."""
    for connection in list(server.open):
        connection.shutdown(socket.SHUT_RDWR)


STATUS_LIES: dict[str, Callable[[Request], bytes]] = {
    "a simple reply": simple,
    "an end": lambda r: chunk(r, 0),
    "no extent": lambda r: chunk(r, 5, b"\0\0\0\7"),
    "half an extent": lambda r: chunk(r, 5, struct.pack(">IIH", 7, 512, 0)),
    "another context": lambda r: chunk(r, 5, struct.pack(">III", 8, 512, 0)),
    "an empty extent": lambda r: chunk(r, 5, struct.pack(">III", 7, 0, 0)),
    "two chunks": lambda r: chunk(r, 5, struct.pack(">III", 7, 512, 0), last=False) * 2,
    "data": lambda r: data_chunk(r, r.offset, bytes(512)),
    "too many": lambda r: chunk(r, 5, struct.pack(">I", 7), length=4 + 8 * (2**20 + 1)),
}


@pytest.mark.parametrize("lie", STATUS_LIES)
def test_a_status_without_sense_ends_the_connection(tmp_path: Path, lie: str) -> None:
    def answer(request: Request) -> bytes | None:
        return server.serve(request) if request.connection else STATUS_LIES[lie](request)

    with FakeServer(tmp_path / "s", answer=answer) as server, Disk(spec(server.path)) as disk:
        assert disk.status(0, 2048) == [(2048, "data")]
        assert server.connections == 2


def test_extents_are_cut_to_sectors_and_to_what_was_asked(tmp_path: Path) -> None:
    extents: list[tuple[int, int]] = []

    def answer(request: Request) -> bytes | None:
        return chunk(request, 5, b"\0\0\0\7" + b"".join(struct.pack(">II", *e) for e in extents))

    with FakeServer(tmp_path / "s", answer=answer) as server, Disk(spec(server.path)) as disk:
        for given, expected in (
            ([(1024, 3), (1024, 0)], "2:hole+zero 2:data"),
            ([(1024, 1), (1024, 2), (0xFFFFFFFF, 3)], "2:data 2:zero 4:hole+zero"),
            ([(100, 3), (924, 0)], "1:data"),
            ([(1100, 3), (924, 0)], "2:hole+zero"),
            ([(1024, 0), (100, 3)], "2:data"),
            ([(512, 0), (512, 3)] * 5000, "1:data 1:hole+zero 1:data 1:hole+zero 1:data 1:hole+zero 1:data 1:hole+zero"),
        ):
            extents[:] = given
            assert disk.batch(["s 0 8"]) == [expected]


def test_a_read_may_come_in_pieces_of_any_order(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes | None:
        if request.type != nbdfake.READ:
            return server.serve(request)
        at = request.offset
        data = bytes(server.memory[at : at + request.length])
        half = request.length // 2 + 3
        return (
            data_chunk(request, at + half, data[half:-512], last=False)
            + chunk(request, 2, struct.pack(">QI", at + request.length - 512, 512), last=False)
            + data_chunk(request, at, data[:half])
        )

    with FakeServer(tmp_path / "s", answer=answer) as server, Disk(spec(server.path)) as disk:
        assert disk.batch([f"w {s} 64 5" for s in range(0, 1024, 64)]) == ["ok"] * 16
        assert disk.batch([f"r {s} 64" for s in range(0, 1024, 64)]) == [" ".join(["5"] * 63 + ["0"])] * 16


def test_a_chunk_of_an_error_fails_its_request_alone(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes | None:
        error = struct.pack(">IH", 28, 3) + b"why"
        match request.offset // 512:
            case 0:
                return chunk(request, 0x8001, error)
            case 8:
                return chunk(request, 0x8002, error + bytes(8), last=False) + chunk(request, 0)
            case 16:
                return data_chunk(request, request.offset, bytes(512), last=False) + chunk(request, 0x8FFF, error)
        return server.serve(request)

    with FakeServer(tmp_path / "s", answer=answer) as server, Disk(spec(server.path)) as disk:
        assert disk.batch([f"r {s} 8" for s in range(0, 32, 8)]) == ["err 28"] * 3 + ["0 0 0 0 0 0 0 0"]
        assert server.connections == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nbd:", "no NBD server; write nbd:unix:SOCKET, nbd+unix:///NAME?socket=SOCKET or nbd://HOST/NAME"),
        ("nbd:/a", "no NBD server; write"),
        ("nbd:unix:", "socket: the path is not absolute"),
        ("nbd:unix:a", "socket: the path is not absolute"),
        ("nbd:unix:/" + "a" * 108, "socket: is longer than 107 bytes"),
        ("nbd:///a", "host: is missing; write nbd://HOST/NAME, or nbd+unix:///NAME?socket=SOCKET"),
        ("nbd://:1/a", "host: is missing"),
        ("nbd://[::1/a", "host: the ] is missing"),
        ("nbd://[::1]x/a", "port: must be a number from 1 to 65535"),
        ("nbd://a:0/", "port: must be a number from 1 to 65535"),
        ("nbd://a:65536", "port: must be a number from 1 to 65535"),
        ("nbd://a:/", "port: must be a number from 1 to 65535"),
        ("nbd://a/?socket=/b", 'parameter "socket=/b": known are reconnect'),
        ("nbd+unix:///a", "socket: is missing; write nbd+unix:///NAME?socket=PATH"),
        ("nbd+unix:///?socket=a", "socket: the path is not absolute"),
        ("nbd+unix://a/?socket=/a", "write nbd+unix:///NAME?socket=SOCKET"),
        ("nbd+unix:unix:/a", "write nbd+unix:///NAME?socket=SOCKET"),
        ("nbd+unix:///?socket=/a&x=1", 'parameter "x=1": known are socket and reconnect'),
        ("nbd+unix:///?socket=/a&reconnect=x", "reconnect: must be 0 to 86400 seconds"),
        ("nbd+unix:///?socket=/a&reconnect=86401", "reconnect: must be 0 to 86400 seconds"),
        ("nbd+unix:///%?socket=/a", "export: % must be followed by two hexadecimal digits, not both 0"),
        ("nbd+unix:///a%00b?socket=/a", "export: % must be followed by two hexadecimal digits, not both 0"),
        ("nbd+unix:///a%4?socket=/a", "export: % must be followed by two hexadecimal digits, not both 0"),
        ("nbd:unix:/nonexistent", "no connection to the NBD server: No such file or directory"),
        ("nbd://[::1]:1/", "no connection to the NBD server: "),
    ],
)
def test_an_address_without_sense_is_refused_by_its_words(text: str, message: str) -> None:
    assert refused(text).startswith(f"{text}: {message}")


@pytest.mark.parametrize("engine", ENGINES)
def test_data_path_allocates_nothing(tmp_path: Path, engine: str) -> None:
    counter = tmp_path / "mallocs"
    preload = {"LD_PRELOAD": str(program("tests/preload-malloc.so", "release")), "MALLOC_COUNT": str(counter)}
    with nbdkit(tmp_path / "s", "memory", "64M"), Disk(
        spec(tmp_path / "s"), engine=engine, mode="release", env=preload
    ) as disk:
        batch = [c for s in range(0, 64 * 128, 128) for c in (f"w {s} 8 1", f"r {s + 64} 8")] + ["f", "z 0 8", "d 8 8"]
        disk.batch(batch)  # the tool makes its own buffers here
        before = counter.read_bytes()
        for _ in range(10):
            disk.batch(batch)
        assert int.from_bytes(before, sys.byteorder) > 0
        assert counter.read_bytes() == before
