# SPDX-License-Identifier: LGPL-2.1-only
"""tapdisk --nbd and --run, as other people's clients and hostile ones see them."""

import errno
import importlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lib.nbdserver import ENGINES, environment, request, serve
from tests.lib.programs import program

MIB = 1 << 20
READ, WRITE, FLUSH = 0, 1, 3
POOL_KIB = 40 * 1024
"""What the buffers of one export may take, as tapdisk(8) has it, in KiB."""


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of 64 MiB: data in the first MiB and from 8 to 9 MiB, the rest holes."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(MIB))
        file.seek(8 * MIB)
        file.write(random.Random(2).randbytes(MIB))
        file.truncate(64 * MIB)
    return path


def make_vhd(path: Path, megabytes: int) -> None:
    subprocess.run([program("vhd-util"), "create", "-n", str(path), "-s", str(megabytes)], check=True, timeout=60)


def run(*command: str | Path, **env: str) -> str:
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True, timeout=60,
                          env={**os.environ, **env})
    return done.stdout.decode()


def tapdisk(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("tapdisk"), *map(str, args)], capture_output=True, text=True, timeout=60, cwd=cwd)


def test_libnbd_reads_what_it_wrote(tmp_path: Path, image: Path, engine: str) -> None:
    model = bytearray(image.read_bytes())
    rng = random.Random(3)
    with serve(tmp_path, f"aio:{image}", engine) as server:
        for structured in (True, False):
            disk = server.connect(structured=structured)
            assert disk.get_size() == 64 * MIB
            for size in (512, 4096, 65536, 256 << 10, MIB + 512, 32 * MIB):
                data, at = rng.randbytes(size), rng.randrange(0, 64 * MIB - size, 512)
                disk.pwrite(data, at, importlib.import_module("nbd").CMD_FLAG_FUA if size == 4096 else 0)
                model[at : at + size] = data
                assert disk.pread(size, at) == data
            disk.flush()
            disk.shutdown()
    assert image.read_bytes() == model


def test_what_is_offered(tmp_path: Path, image: Path) -> None:
    with serve(tmp_path, f"aio:{image}") as server:
        disk = server.connect()
        assert disk.can_flush() and disk.can_fua() and disk.can_multi_conn() and disk.can_df()
        assert disk.can_trim() and disk.can_zero() and not disk.can_fast_zero() and not disk.can_cache()
        assert not disk.is_read_only()
        nbd = importlib.import_module("nbd")
        assert disk.get_block_size(nbd.SIZE_MINIMUM) == 512
        assert disk.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB


def test_trim_zero_and_block_status(tmp_path: Path, image: Path, engine: str) -> None:
    extents: list[tuple[int, int]] = []

    def extent(_context: str, _offset: int, entries: list[int], _error: object) -> None:
        extents.extend(zip(entries[::2], entries[1::2], strict=True))

    with serve(tmp_path, f"aio:{image}", engine) as server:
        disk = server.connect()
        disk.block_status(64 * MIB, 0, extent)
        assert extents[0] == (MIB, 0) and extents[1] == (7 * MIB, 3) and extents[2] == (MIB, 0)
        disk.trim(MIB, 0)
        disk.zero(MIB, 8 * MIB)
        assert disk.pread(9 * MIB, 0) == bytes(9 * MIB)


def test_readonly_is_eperm_and_writes_nothing(tmp_path: Path, image: Path, engine: str) -> None:
    before = image.read_bytes()
    with serve(tmp_path, f"aio:{image}", engine, readonly=True) as server:
        disk = server.connect()
        assert disk.is_read_only()
        disk.set_strict_mode(0)
        for change, data in ((disk.pwrite, bytes(512)), (disk.trim, 512), (disk.zero, 512)):
            with pytest.raises(importlib.import_module("nbd").Error) as error:
                change(data, 0)
            assert error.value.errnum == errno.EPERM
        assert disk.pread(MIB, 0) == before[:MIB]
    assert image.read_bytes() == before


def test_a_killed_server_loses_nothing_that_any_connection_wrote(tmp_path: Path) -> None:
    make_vhd(tmp_path / "a.vhd", 64)
    command = """
import nbd, os, signal
disks = [nbd.NBD() for _ in range(4)]
for i, disk in enumerate(disks):
    disk.connect_unix(os.environ["unixsocket"])
    disk.pwrite(bytes([i + 1]) * 4096, i * 4 << 20)
disks[0].flush()
os.kill(os.getppid(), signal.SIGKILL)
"""
    (tmp_path / "client.py").write_text(command)
    done = tapdisk("--run", f"exec /usr/bin/python3 {tmp_path}/client.py", f"vhd:{tmp_path}/a.vhd")
    assert done.returncode == -signal.SIGKILL
    with serve(tmp_path, f"vhd:{tmp_path}/a.vhd") as server:
        disk = server.connect()
        for i in range(4):
            assert disk.pread(4096, i * 4 * MIB) == bytes([i + 1]) * 4096


def test_qemu_and_nbdcopy_are_content(tmp_path: Path, image: Path, engine: str) -> None:
    make_vhd(tmp_path / "a.vhd", 64)
    with serve(tmp_path, f"vhd:{tmp_path}/a.vhd", engine) as server:
        run("nbdcopy", "--flush", image, server.uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri, image)
        assert "64 MiB" in run("qemu-img", "info", server.uri)
        run("nbdcopy", server.uri, tmp_path / "back.img")
        assert (tmp_path / "back.img").read_bytes() == image.read_bytes()
        out = run("qemu-io", "-f", "raw", "-c", "write -P 7 512 3M", "-c", "read -P 7 512 3M", "-c", "flush", server.uri)
        assert "failed" not in out


def test_serving_allocates_nothing(tmp_path: Path, image: Path, engine: str) -> None:
    """Whatever the length, the count and the answer: no malloc after the first connection's first requests."""
    counter = tmp_path / "mallocs"
    env = {"LD_PRELOAD": str(program("tests/preload-malloc.so", "release")), "MALLOC_COUNT": str(counter)}
    with serve(tmp_path, f"aio:{image}", engine, mode="release", env=env) as server:
        disk = server.connect()
        disk.pwrite(bytes(MIB), 0)
        disk.flush()
        before = counter.read_bytes()
        assert int.from_bytes(before, sys.byteorder) > 0
        nbd = importlib.import_module("nbd")
        for i in range(200):
            disk.aio_pread(nbd.Buffer(4096), i * 4096)
            disk.aio_pwrite(nbd.Buffer(16384), (i + 1000) * 16384)
            disk.poll(0)
        while disk.aio_in_flight():
            disk.poll(-1)
        for other in (disk, server.connect(structured=False)):
            other.pwrite(bytes(8 * MIB), 0, nbd.CMD_FLAG_FUA)
            assert len(other.pread(32 * MIB, 0)) == 32 * MIB
            other.zero(MIB, 0)
            other.flush()
        assert counter.read_bytes() == before


# Hostile clients


def test_a_client_that_says_nothing_is_left(tmp_path: Path, image: Path) -> None:
    with serve(tmp_path, f"aio:{image}", said=b"slow handshake") as server, server.raw() as silent:
        began = time.monotonic()
        assert len(silent.recv(100)) == 18
        assert silent.recv(100) == b""
        assert server.process.poll() is None
        assert 8 < time.monotonic() - began < 60


def test_garbage_ends_that_connection_alone(tmp_path: Path, image: Path, engine: str) -> None:
    rng = random.Random(seed := time.time_ns())
    print("seed", seed)
    with serve(tmp_path, f"aio:{image}", engine) as server:
        disk = server.connect()
        for i in range(40):
            with server.serving() if i % 2 else server.raw() as bad:
                try:
                    bad.sendall(rng.randbytes(rng.randrange(1, 3000)))
                    bad.shutdown(socket.SHUT_WR)
                    while bad.recv(65536):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass
        assert len(disk.pread(MIB, 0)) == MIB


def test_memory_is_bounded_against_4_gib_and_clients_that_never_read(tmp_path: Path, image: Path, engine: str) -> None:
    with serve(tmp_path, f"aio:{image}", engine) as server:
        server.connect().shutdown()
        idle = server.rss()
        deaf = [server.serving() for _ in range(12)]
        for connection in deaf:
            # An error each, then more replies than fit anywhere.
            connection.sendall(request(READ, 1, 0, 0xFFFFFE00) * 10 + request(READ, 2, 0, 32 * MIB) * 20)
        began = time.monotonic()
        disk = server.connect()
        for _ in range(20):
            assert len(disk.pread(8 * MIB, 0)) == 8 * MIB
        assert time.monotonic() - began < 60
        assert server.rss() - idle < POOL_KIB
        for connection in deaf:
            connection.close()


def test_a_write_too_long_is_refused_and_the_connection_goes_on(tmp_path: Path, image: Path) -> None:
    with serve(tmp_path, f"aio:{image}") as server, server.serving() as bad:
        bad.sendall(request(WRITE, 7, 0, 33 * MIB) + bytes(33 * MIB) + request(FLUSH, 8, 0, 0))
        answers = b""
        while len(answers) < 32:
            answers += bad.recv(64)
        assert answers[4:8] == b"\0\0\0\x16" and answers[20:24] == b"\0\0\0\0"
    assert image.read_bytes()[:MIB] != bytes(MIB)


# The command line


def test_what_cannot_be_served_is_said_before_there_is_a_socket(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    for spec, words in (("aio:none.img", "none.img"), ("disk.img", "no image type named"), ("vhd:disk.img", "disk.img")):
        done = tapdisk(f"--nbd={path}", spec, cwd=tmp_path)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("tapdisk: ") and words in done.stderr and done.stderr.count("\n") == 1
        assert not path.exists()
    done = tapdisk(f"--nbd={tmp_path}/{'x' * 120}", f"aio:{image}")
    assert done.returncode == 1 and "longer than" in done.stderr
    for usage in ([f"--nbd={path}"], ["--read-only"], [f"--nbd={path}", "a", "b"], ["aio:disk.img"],
                  [f"--nbd={path}", "--grace=1", "aio:disk.img"]):
        assert tapdisk(*usage, cwd=tmp_path).returncode == 2


def test_an_image_in_use_is_refused(tmp_path: Path, image: Path) -> None:
    with serve(tmp_path, f"aio:{image}"):
        done = tapdisk("--run", "echo ran", f"aio:{image}")
    assert done.returncode == 1 and str(image) in done.stderr and done.stdout == ""


def test_a_socket_in_use_is_left_alone(tmp_path: Path, image: Path) -> None:
    (tmp_path / "other.img").write_bytes(bytes(MIB))
    with serve(tmp_path, f"aio:{image}") as server:
        done = tapdisk(f"--nbd={server.path}", f"aio:{tmp_path}/other.img")
        assert done.returncode == 1 and "another process listens there" in done.stderr
        assert server.connect().get_size() == 64 * MIB


def test_run_gives_the_command_the_disk_and_ends_with_its_status(tmp_path: Path, image: Path) -> None:
    done = tapdisk("--run", 'nbdinfo --size "$uri"; test -S "$unixsocket" && echo "$unixsocket"; exit 7',
                   "aio:disk.img", cwd=tmp_path)
    size, path = done.stdout.split()
    assert (done.returncode, size, done.stderr) == (7, str(64 * MIB), "")
    assert not Path(path).parent.exists()
    assert tapdisk("--run", "kill -9 $$", f"aio:{image}").returncode == 128 + signal.SIGKILL
    assert tapdisk("--run", "nbdinfo --is read-only $uri", "--read-only", f"aio:{image}").returncode == 0


def test_the_command_ends_with_tapdisk(tmp_path: Path, image: Path) -> None:
    command = [str(program("tapdisk")), "--run", "echo $$; exec sleep 100", f"aio:{image}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(tmp_path, "uring")) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize(
    ("trap", "grace", "status"),
    [("", 2, 128 + signal.SIGKILL), ("exit 3", 60, 3)],
    ids=["ignores it", "needs a moment"],
)
def test_a_command_has_limited_time_after_sigterm(
    tmp_path: Path, image: Path, trap: str, grace: int, status: int
) -> None:
    script = f"trap '{trap}' TERM; echo $$; while :; do sleep 0.2; done"
    command = [str(program("tapdisk")), "--run", script, f"--grace={grace}", f"aio:{image}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        child = int(process.stdout.readline())
        begin = time.monotonic()
        process.terminate()
        try:
            assert process.wait(90) == status
        except subprocess.TimeoutExpired:
            os.kill(child, signal.SIGKILL)
            raise
        assert (time.monotonic() - begin >= grace) == (not trap)
        said = process.stderr.read()
    assert (f"the command goes on {grace} s after SIGTERM; it is killed" in said) == (not trap)


@pytest.mark.parametrize("grace", ["", "-1", "2s", "86401", "99999999999999999999"])
def test_a_grace_that_makes_no_sense_is_refused(image: Path, grace: str) -> None:
    done = tapdisk(f"--grace={grace}", "--run", "echo ran", f"aio:{image}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tapdisk: --grace={grace}: must be a number of seconds, at most 86400\n"


def test_an_idle_server_of_a_terabyte_is_small(tmp_path: Path) -> None:
    make_vhd(tmp_path / "big.vhd", 1 << 20)
    with serve(tmp_path, f"vhd:{tmp_path}/big.vhd") as server:
        server.connect().shutdown()
        rss = server.rss()
    limit = 5 * 1024 if os.environ.get("XENBLK_MODE") == "release" else 100 * 1024
    assert rss < limit


def test_what_the_readme_says_of_serving_an_image_is_true(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    commands = [line for line in readme.splitlines() if "disk.sock" in line or "--run" in line]
    assert len(commands) == 3
    listens = "for i in $(seq 600); do test -S /tmp/disk.sock && break; sleep 0.1; done"
    # as they stand there, but for a wait that a reader's fingers are
    script = "\n".join(["set -e", *commands[:2], listens, commands[2], "kill %1", "wait"])
    for said, meant in (
        ("/usr/libexec/tapdisk", str(program("tapdisk"))),
        ("/tmp/disk.sock", str(tmp_path / "disk.sock")),
        ("/srv/data.vhd", str(tmp_path / "data.vhd")),
    ):
        assert said in script
        script = script.replace(said, meant)
    make_vhd(tmp_path / "data.vhd", 4)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "virtual size: 4 MiB" in done.stdout
    assert (tmp_path / "data.img").stat().st_size == 4 * MIB
