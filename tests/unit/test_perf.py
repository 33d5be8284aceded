# SPDX-License-Identifier: LGPL-2.1-only
"""The bench's pure parts: statistics, what fio, perf and strace print, templates of servers, what is concluded."""

import argparse
import json
import os
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.lib.programs import ROOT
from tests.perf import __main__ as bench_main
from tests.perf import (
    cells,
    counting,
    fio,
    guest,
    images,
    inbed,
    jobs,
    machine,
    media,
    proc,
    report,
    results,
    servers,
    stats,
    verdict,
)
from tests.perf.fio import PATTERNS
from tests.perf.results import AttachRun, Check, Count, JobRun, Results, Run, VmCount, VmRun
from tests.perf.servers import Server, TemplateError

# Statistics


@pytest.mark.parametrize(
    ("rounds", "low", "high", "confidence"),
    [(1, 0, 0, 0.0), (3, 0, 2, 0.75), (5, 0, 4, 0.9375), (6, 0, 5, 0.96875), (7, 0, 6, 0.984375), (9, 1, 7, 0.9609375)],
)
def test_bounds_are_the_order_statistics_of_the_sign_test(rounds: int, low: int, high: int, confidence: float) -> None:
    values = [float(i) for i in range(rounds)]
    random.Random(1).shuffle(values)
    found = stats.interval(values)
    assert (found.low, found.high) == (low, high)
    assert found.confidence == pytest.approx(confidence)
    assert found.median == (rounds - 1) / 2


def test_bounds_hold_the_true_median_as_often_as_they_say() -> None:
    rng = random.Random(7)
    hits = 0
    for _ in range(2000):
        found = stats.interval([rng.lognormvariate(0.0, 0.5) for _ in range(9)])
        hits += found.low <= 1.0 <= found.high
    assert 0.945 < hits / 2000 < 0.98


def test_ratios_are_paired_by_round() -> None:
    # a machine that gets slower halves both sides: the ratio stays
    mine = {i: 200.0 / 2**i for i in range(6)}
    theirs = {i: 100.0 / 2**i for i in range(6)}
    assert stats.paired(mine, theirs) == stats.Interval(2.0, 2.0, 2.0, 0.96875, 6)


def test_a_round_that_one_side_lacks_is_left_out() -> None:
    assert stats.paired({0: 4.0, 1: 9.0, 2: 6.0}, {0: 2.0, 2: 2.0}).rounds == 2


def test_no_values_have_no_median() -> None:
    with pytest.raises(ValueError, match="no values"):
        stats.interval([])


def test_one_competitor_for_the_whole_cell() -> None:
    # b wins no more than one round, but it wins by its median
    assert stats.best({"a": {0: 9.0, 1: 1.0, 2: 1.0}, "b": {0: 2.0, 1: 2.0, 2: 2.0}}) == "b"


# fio


def fio_json(**changes: Any) -> str:
    side = {
        "total_ios": 1000,
        "io_bytes": 4096000,
        "runtime": 500,
        "clat_ns": {"mean": 20000.0, "max": 900000, "percentile": {"50.000000": 1, "99.000000": 45000}},
    }
    idle = {"total_ios": 0, "io_bytes": 0, "runtime": 0, "clat_ns": {"mean": 0.0, "max": 0}}
    job = {"error": 0, "usr_cpu": 25.0, "sys_cpu": 50.0, "read": side, "write": idle, **changes}
    return "fio: connected to NBD server\n" + json.dumps({"fio version": "fio-3.33", "jobs": [job]})


def test_fio_output_is_read() -> None:
    found = fio.parse(fio_json())
    assert found == fio.FioResult(1000, 4096000, 0.5, 20.0, 45.0, 900.0, 0.75)


@pytest.mark.parametrize("text", ["", "{}", "fio: error", fio_json(error=5), fio_json(read={"total_ios": 0})])
def test_fio_output_that_is_no_result_is_an_error(text: str) -> None:
    with pytest.raises(fio.FioError):
        fio.parse(text)


def test_fio_gets_a_time_or_a_number_of_requests() -> None:
    sock = Path("/run/x/s")
    timed = fio.command(PATTERNS["rr32"], fio.by_nbd(sock), size=1 << 20, seed=3, milliseconds=700)
    assert "--uri=nbd+unix:///?socket=/run/x/s" in timed
    assert {"--rw=randread", "--bs=4096", "--iodepth=32", "--runtime=700ms", "--randseed=3"} <= set(timed)
    counted = fio.command(PATTERNS["sw"], fio.by_nbd(sock), size=1 << 20, seed=3, ios=10)
    assert "--number_ios=10" in counted and f"--io_size={10 << 20}" in counted
    assert not any("runtime" in word or "time_based" in word for word in counted)


def test_a_colon_in_a_file_name_is_no_separator_of_fio() -> None:
    assert fio.by_file(Path("/srv/a:b.img"))[-1] == "--filename=/srv/a\\:b.img"


def test_every_pattern_only_reads_or_only_writes() -> None:
    assert {name for name, pattern in PATTERNS.items() if pattern.writes} == {"rw1", "rw32", "sw"}


# Counting

STRACE = """strace: Process 12 attached
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.10    0.100000           5     22000       120 io_uring_enter
 39.90    0.050000           5     11000           sendmsg
------ ----------- ----------- --------- --------- ----------------
100.00    0.150000           5     33000       120 total
"""


def test_strace_output_is_read_without_its_total() -> None:
    assert counting.parse_strace(STRACE) == {"io_uring_enter": 22000, "sendmsg": 11000}


HISTOGRAM = """# event histogram
#
# trigger info: hist:keys=id.syscall:vals=hitcount:sort=hitcount:size=2048 if common_pid==210 [active]
#

{ id: sys_ioctl                     [ 16] } hitcount:        623
{ id: sys_io_uring_enter            [426] } hitcount:        625

Totals:
    Hits: 1248
"""


def test_the_kernels_histogram_is_read() -> None:
    assert inbed.parse_histogram(HISTOGRAM) == {"ioctl": 623, "io_uring_enter": 625}
    assert inbed.parse_histogram("") == {}


def test_strace_of_a_process_that_calls_nothing_is_empty() -> None:
    assert counting.parse_strace("") == {}


def test_strace_output_that_is_no_table_is_an_error() -> None:
    with pytest.raises(counting.CountError):
        counting.parse_strace("strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted")


def test_perf_output_is_read() -> None:
    text = "# started on Wed\n\n120034,,raw_syscalls:sys_enter,1201,100.00,,\n"
    assert counting.parse_perf(text) == 120034


@pytest.mark.parametrize("text", ["", "<not supported>,,raw_syscalls:sys_enter,0,0.00,,", "1,,cycles,1,1,,"])
def test_perf_output_without_a_count_is_an_error(text: str) -> None:
    with pytest.raises(counting.CountError):
        counting.parse_perf(text)


def test_what_a_start_costs_is_not_counted() -> None:
    assert counting.per_request(500 + counting.SHORT * 2, 500 + counting.LONG * 2) == 2.0


def test_a_server_that_never_loaded_the_counter_has_no_count(tmp_path: Path) -> None:
    env, place = counting.preload(Path("/lib/x.so"), tmp_path)
    assert env == {"LD_PRELOAD": "/lib/x.so", "MALLOC_COUNT": str(place)}
    assert counting.mallocs(place) is None
    place.write_bytes((77).to_bytes(8, "little"))
    assert counting.mallocs(place) == 77


def test_a_process_name_may_hold_anything() -> None:
    text = "12 (a) b (c)) S 1 12 12 0 -1 4194560 0 0 0 0 7 5 2 1 20 0"
    assert proc.fields(text)[3] == "12"
    assert sum(map(int, proc.fields(text)[11:15])) == 15


# Servers


def test_a_template_is_filled_word_by_word() -> None:
    server = servers.parse_template("mine=serve --image='{img}' {sock} -f {format}")
    image = Path("/srv/with space/{sock}.img")
    assert server.command(image, Path("/run/s"), "raw") == ["serve", f"--image={image}", "/run/s", "-f", "raw"]
    assert (server.name, server.formats) == ("mine", ("raw",))


def test_a_template_may_name_its_formats_and_hold_other_braces() -> None:
    server = servers.parse_template("q:vpc,qcow2=serve '{\"a\": 1}' {type} {img} {sock}")
    assert server.formats == ("vpc", "qcow2")
    assert server.command(Path("i"), Path("s"), "vpc") == ["serve", '{"a": 1}', "vhd", "i", "s"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("serve {img} {sock}", "no name"),
        ("=serve {img} {sock}", "no name"),
        ("a=", "no command"),
        ("a=serve {img}", "{sock} is missing"),
        ("a=serve {sock}", "{img} is missing"),
        ("a=serve '{img} {sock}", "quotation"),
        ("a:vmdk=serve {img} {sock}", "no format 'vmdk'"),
    ],
)
def test_a_bad_template_says_what_it_wants(text: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message) as found:
        servers.parse_template(text)
    assert "NAME[:raw,vpc,qcow2]=CMD" in str(found.value)


def test_no_place_of_this_machine_is_told() -> None:
    server = Server("x", ("/home/me/bin/serve", "/home/me/plugin.so", "{img}", "{sock}"))
    assert server.public_argv() == "serve plugin.so '{img}' '{sock}'"


def test_a_server_that_ends_at_once_is_an_error_with_its_words(tmp_path: Path) -> None:
    server = Server("bad", ("sh", "-c", "echo no such image >&2; exit 3", "{img}", "{sock}"))
    with (
        pytest.raises(servers.ServerError, match="bad: ended with status 3: no such image"),
        servers.Running(server, tmp_path / "i", "raw", tmp_path),
    ):
        pass


def test_qemu_serves_no_chain_of_vhds() -> None:
    by_name = {server.name: server for server in servers.peers()}
    assert cells.formats("chain5", by_name["qemu-nbd"]) == ["qcow2"]
    assert cells.formats("chain5", Server("t", (), ("raw", "vpc"), parents=True)) == ["vpc"]
    assert cells.formats("chain5", by_name["nbdkit"]) == []
    assert cells.formats("full", by_name["qemu-nbd"]) == ["vpc", "qcow2"]
    assert cells.formats("raw", by_name["qemu-nbd"]) == ["raw"]


def test_everyone_begins_a_round_in_turn() -> None:
    three = [cells.Entry(Server(name, ()), "raw") for name in "abc"]
    orders = [[entry.server.name for entry in cells.rotated(three, i)] for i in range(4)]
    assert ["".join(order) for order in orders] == ["abc", "bca", "cab", "abc"]


def test_quick_cells_are_cells_of_the_whole_bench() -> None:
    whole = {cell.name for cell in cells.cells(["ram", "disk"], quick=False)}
    quick = {cell.name for cell in cells.cells(["ram", "disk"], quick=True)}
    assert quick < whole


def test_the_generations_of_a_chain_are_the_same_for_every_format() -> None:
    first = images.generation(1 << 26, 5, 2)
    assert first == images.generation(1 << 26, 5, 2) != images.generation(1 << 26, 5, 3)
    assert len(first) == (1 << 26) // images.PIECE // 5 == len(set(first))
    assert all(offset % images.PIECE == 0 and offset < 1 << 26 for offset in first)


def test_what_a_killed_bench_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f"xbench-{ended.pid}-a").mkdir()
    (tmp_path / f"xbench-{ended.pid}-a" / "raw.img").write_bytes(b"x")
    (tmp_path / f"xbench-{os.getpid()}-b").mkdir()
    (tmp_path / "xbench-notes-c").mkdir()
    mine = media.scratch(tmp_path)
    kept = {f"xbench-{os.getpid()}-b", "xbench-notes-c", mine.name}
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize(("cpus", "server", "client"), [([0, 1], "0", "1"), ([3, 1, 2], "1,2", "3"), ([0], "", "")])
def test_the_client_has_a_cpu_of_its_own(cpus: list[int], server: str, client: str) -> None:
    assert machine.split_cpus(cpus) == (server, client)


# Conclusions


def run(cell: str, entry: str, number: int, iops: float, **changes: Any) -> Run:
    values: dict[str, Any] = {
        **{"round": number, "cell": cell, "entry": entry, "ios": int(iops), "bytes": int(iops * 4096), "seconds": 1.0},
        **{"flush_ms": 0.0, "mean_us": 20.0, "p99_us": 50.0, "max_us": 90.0, "client_cpu": 0.5, "server_cpu": 0.5},
        **{"cpu_us_per_io": 10.0, "others_cpu": 0.0, "rss_idle_kib": 4000, "rss_after_kib": 4100},
    }
    return Run(**{**values, **changes})


def two_sides(mine: float, other: float, *, of_mine: dict[str, Any], of_other: dict[str, Any]) -> Results:
    found = Results(date="2026-01-01T0000Z")
    for number in range(7):
        drift = 1 + number / 10
        found.runs.append(run("ram/raw/rr32", "tapdisk raw", number, mine * drift, **of_mine))
        found.runs.append(run("ram/raw/rr32", "qemu-nbd raw", number, other * drift, **of_other))
        found.runs.append(run("ram/raw/rr32", "nbdkit raw", number, 10.0))
        found.runs.append(run("ram/raw/rr32", "no-server raw", number, 1e6))
    return found


@pytest.mark.parametrize(
    ("mine", "other", "of_mine", "of_other", "limit", "expected"),
    [
        (96e3, 100e3, {}, {}, "neither", verdict.REACHED),
        (90e3, 100e3, {}, {}, "neither", verdict.MISSED),
        (140e3, 100e3, {}, {"server_cpu": 1.0}, "server", verdict.MISSED),
        (160e3, 100e3, {}, {"server_cpu": 1.0}, "server", verdict.REACHED),
        (100e3, 100e3, {"client_cpu": 0.95, "cpu_us_per_io": 6.0}, {"server_cpu": 1.0}, "client", verdict.REACHED),
        (100e3, 100e3, {"client_cpu": 0.95, "cpu_us_per_io": 8.0}, {}, "client", verdict.MISSED),
        (90e3, 100e3, {"client_cpu": 0.95, "cpu_us_per_io": 6.0}, {}, "client", verdict.MISSED),
        # the other is as fast as the client allows: nobody can be half as fast again
        (98e3, 100e3, {"cpu_us_per_io": 6.0}, {"client_cpu": 0.95, "server_cpu": 0.9}, "client", verdict.REACHED),
    ],
)
def test_a_cell_is_judged_by_what_limits_it(
    mine: float, other: float, of_mine: dict[str, Any], of_other: dict[str, Any], limit: str, expected: str
) -> None:
    (row,) = verdict.ratios(two_sides(mine, other, of_mine=of_mine, of_other=of_other))
    assert (row.mine, row.other) == ("tapdisk raw", "qemu-nbd raw")
    assert row.iops.median == pytest.approx(mine / other, rel=1e-3)
    assert (row.limit, row.verdict) == (limit, expected)


def test_bounds_that_hold_the_target_leave_it_open() -> None:
    wide = stats.Interval(1.0, 0.8, 1.2, 0.98, 7)
    assert verdict.at_least(wide, 0.95) == verdict.at_most(wide, 1.1) == verdict.OPEN
    assert verdict.worst(verdict.REACHED, verdict.OPEN) == verdict.OPEN
    assert verdict.worst(verdict.MISSED, verdict.OPEN, verdict.ABSENT) == verdict.MISSED


def targets_of(found: Results) -> dict[str, str]:
    return {row.name: row.verdict for row in verdict.targets(found)}


def test_counts_are_judged_at_depth_and_allocations_always() -> None:
    found = Results(
        counts=[
            Count("ram/raw/rr32", "tapdisk raw", 0.9, 0.0),
            Count("ram/raw/rr1", "tapdisk raw", 3.0, 0.001),
            Count("ram/raw/rr32", "qemu-nbd raw", 7.0, 4.0),
        ]
    )
    assert targets_of(found) == {
        "system calls per I/O, ram/raw/rr32": verdict.REACHED,
        "mallocs per I/O, at worst of 2 cells (ram/raw/rr1)": verdict.MISSED,
    }


def test_a_chain_and_a_fresh_image_are_compared_with_our_own_full_one() -> None:
    found = Results()
    for i in range(7):
        found.runs += [
            run("ram/full/rr32", "tapdisk vpc", i, 1000.0 + i),
            run("ram/chain30/rr32", "tapdisk vpc", i, 960.0 + i),
            run("disk/full/rw32", "tapdisk vpc", i, 1000.0),
            run("disk/fresh/rw32", "tapdisk vpc", i, 800.0, p99_us=140.0),
        ]
    assert targets_of(found) == {
        "chain of 30 / chain of 1, IOPS, ram rr32": verdict.REACHED,
        "fresh / full VHD, IOPS, disk rw32": verdict.MISSED,
        "fresh / full VHD, p99, disk rw32": verdict.REACHED,
    }


def test_a_check_that_was_not_made_is_said() -> None:
    found = Results(checks=[Check("stall", "tapdisk vpc", None, "ms", "no"), Check("space", "tapdisk vpc", 0.22, "GB")])
    assert list(targets_of(found).values()) == [verdict.ABSENT, verdict.REACHED]


def test_a_stall_is_told_with_what_the_machine_alone_does() -> None:
    found = Results(checks=[Check("stall", "tapdisk vpc", 7.5, "ms", "6.0 ms without snapshots")])
    (row,) = verdict.targets(found)
    assert "(6.0 ms without snapshots)" in row.name and row.verdict == verdict.MISSED


# Work on image files


def work(name: str, times: dict[str, float | tuple[float, float]]) -> Results:
    found = Results(date="2026-01-01T0000Z")
    for number in range(7):
        drift = 1 + number / 10
        for entry, each in times.items():
            seconds, synced = each if isinstance(each, tuple) else (each, each)
            found.jobs.append(JobRun(number, name, entry, seconds * drift, synced * drift, 0.01))
    return found


def test_a_coalesce_is_held_against_the_quickest_way_of_a_commit() -> None:
    ways = {"qemu-img commit -t none": 3.0, "qemu-img commit -t writeback": 2.0, "cp": 0.1}
    first, second = verdict.targets(work("coalesce-empty", {"vhd-util coalesce": 2.5, **ways}))
    assert first.name == "coalesce-empty: time of vhd-util coalesce / qemu-img commit -t writeback"
    assert (first.value, first.verdict) == ("1.25 [1.25, 1.25]", verdict.MISSED)
    assert second.name.endswith("both synced") and second.verdict == verdict.NOTED
    (first, _) = verdict.targets(work("coalesce-empty", {"vhd-util coalesce": 1.9, **ways}))
    assert first.verdict == verdict.REACHED


def test_a_copy_is_judged_against_a_cp_that_does_not_sync_and_told_beside_one_that_does() -> None:
    found = work("copy", {"vhd-util copy": 2.0, "vhd-util convert raw": 2.6, "cp --sparse=always": (2.0, 4.0)})
    rows = verdict.targets(found)
    assert [(row.value, row.verdict) for row in rows] == [
        ("1.00 [1.00, 1.00]", verdict.REACHED),
        ("0.50 [0.50, 0.50]", verdict.NOTED),
        ("1.30 [1.30, 1.30]", verdict.MISSED),
        ("0.65 [0.65, 0.65]", verdict.NOTED),
    ]
    assert len({row.name for row in rows}) == 4


def test_what_must_be_quick_is_judged_in_seconds_by_the_worse_bound() -> None:
    (row,) = verdict.targets(work("check", {"vhd-util check -b": 0.2, "qemu-img check": 0.1}))
    assert (row.verdict, row.value) == (verdict.REACHED, "0.260 [0.200, 0.320]")
    assert targets_of(work("create", {"vhd-util create": 0.015})) == {"vhd-util create, seconds": verdict.OPEN}
    assert targets_of(work("query", {"vhd-util query": 0.03})) == {"vhd-util query, seconds": verdict.MISSED}


@pytest.mark.parametrize("name", ["coalesce-empty", "copy"])
def test_a_work_with_one_side_has_no_target(name: str) -> None:
    assert verdict.targets(work(name, {"vhd-util coalesce": 1.0, "vhd-util copy": 1.0})) == []
    assert verdict.targets(work(name, {"qemu-img commit": 1.0, "cp": 1.0})) == []


def test_the_report_shows_works_with_and_without_their_sync() -> None:
    found = work("copy", {"vhd-util copy": 2.0, "cp": (1.0, 3.0)})
    lines = report.lines(found)
    rows = [line.split() for line in lines if line.startswith("  copy ")]
    assert rows == [
        ["copy", "vhd-util", "copy", "2.600", "[2.000,", "3.200]", "2.600", "0.010", "7"],
        ["copy", "cp", "1.300", "[1.000,", "1.600]", "3.900", "0.010", "7"],
    ]
    assert not any("No ratios" in line for line in report.lines(found))


def test_a_childs_pieces_are_100_mb_wherever_they_fit() -> None:
    placed = jobs.pieces(jobs.VIRTUAL)
    assert placed == jobs.pieces(jobs.VIRTUAL) and len(placed) == len(set(placed)) == 1525
    assert all(offset % images.PIECE == 0 and offset < jobs.VIRTUAL for offset in placed)
    assert len(jobs.pieces(images.PIECE * 400)) == 100


def test_every_work_is_planned_and_judged() -> None:
    assert set(jobs.PLANS) == set(jobs.WORKS) > set(jobs.COLD)
    assert {row[0] for row in (*verdict.JOB_RATIOS, *verdict.JOB_SECONDS)} == set(jobs.WORKS)


def test_time_ends_with_the_program_and_then_with_its_sync(tmp_path: Path) -> None:
    seconds, synced, cpu = jobs.timed(["sh", "-c", f"echo x > {tmp_path}/f; sleep 0.05"], tmp_path / "f")
    assert 0.05 <= seconds <= synced and cpu < seconds
    with pytest.raises(images.PrepareError, match="status 3: why"):
        jobs.timed(["sh", "-c", "echo why >&2; exit 3"], None)


def test_no_work_is_measured_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = Results()
    monkeypatch.setattr(machine, "file_system", lambda _directory: "tmpfs")
    jobs.measure(found, tmp_path, jobs.WORKS, images.GIB, 1)
    assert "BENCH_DIR" in found.notes[0] and not found.jobs


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ["servers", "jobs", "kernel", "guest", "attach"]),
        (["--quick"], ["servers", "jobs"]),
        (["--quick", "--part", "kernel"], ["kernel"]),
        (["--part", "jobs"], ["jobs"]),
        (["--job", "check"], ["jobs"]),
        (["--cell", "ram/raw/rr1"], ["servers"]),
        (["--cell", "ram/raw/rr1", "--part", "jobs", "--part", "servers"], ["servers", "jobs"]),
    ],
)
def test_options_of_a_part_choose_that_part(argv: list[str], expected: list[str]) -> None:
    args: argparse.Namespace = bench_main.parser().parse_args(argv)
    assert bench_main.parts(args) == expected


# In virtual machines


def in_vm(cell: str, rates: dict[str, float]) -> Results:
    found = Results(date="2026-01-01T0000Z")
    for number in range(7):
        for entry, iops in rates.items():
            found.vm_runs.append(VmRun(number, "kernel of Debian 13", cell, entry, 1000, (1 + number) * 1000 / iops))
    return found


def test_each_way_is_held_against_its_own_in_its_own_cell() -> None:
    rates = {"raw": 90e3, "loop": 40e3, "extents": 38e3, "copy": 20e3, "ublk": 18e3}
    assert [(row.name, row.value, row.verdict) for row in verdict.targets(in_vm("disk/r4k16", rates))] == [
        ("kernel of Debian 13, disk/r4k16: IOPS of extents / loop", "0.95 [0.95, 0.95]", verdict.REACHED),
        ("kernel of Debian 13, disk/r4k16: IOPS of copy / ublk", "1.11 [1.11, 1.11]", verdict.MISSED),
    ]
    assert verdict.targets(in_vm("disk/w4k16", rates)) == []
    assert verdict.targets(in_vm("file/r4k1", {"extents": 1.0, "raw": 1.0})) == []
    [row] = verdict.targets(in_vm("file/w64k8", {"tap2": 90.0, "phy": 100.0}))
    assert row.verdict == verdict.MISSED


def test_what_reaches_tapdisk_is_told_and_judged() -> None:
    found = Results(date="2026-01-01T0000Z")
    for way, calls in (("extents", 0.0), ("copy", 0.25), ("ublk", 0.25)):
        found.vm_counts.append(VmCount("kernel of Debian 13", "disk/r4k16", way, calls, calls * 4, {"ioctl": calls}))
    assert [row.verdict for row in verdict.targets(found)] == [verdict.REACHED, verdict.MISSED]
    text = "\n".join(report.lines(found))
    assert re.search(r"disk/r4k16\s+copy\s+0\.250\s+1\.0000\s+ioctl 0\.250", text)


def test_the_report_shows_every_way() -> None:
    lines = list(report.lines(in_vm("file/r4k1", {"loop": 7e3, "extents": 14e3})))
    assert [line.split()[5:7] for line in lines if "file/r4k1" in line and "extents /" not in line] == [
        ["loop", "1750"],
        ["extents", "3500"],
    ]


def test_the_client_says_what_it_did(tmp_path: Path) -> None:
    program = tmp_path / "client"
    program.write_bytes(inbed.build_client(tmp_path))
    program.chmod(0o755)
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    if not images.has_direct_io(tmp_path):
        disk = ROOT / "build" / "client-disk"
        disk.write_bytes(bytes(1 << 20))
    for load in (inbed.LOADS["w4k16"], inbed.LOADS["r64k8"]):
        command = f"{program} {inbed.arguments(str(disk), load, 1 << 20, 7, ios=100)}"
        ios, seconds = inbed.parse(subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout)
        assert ios == 100 and 0 < seconds < 60
    assert len(set(disk.read_bytes())) > 2
    with pytest.raises(ValueError, match="the client said"):
        inbed.parse("aioload: io_submit: Input/output error")
    disk.unlink()


@pytest.mark.parametrize("number", [0, 1, 6])
def test_a_guest_runs_every_load_on_every_disk_each_round(number: int) -> None:
    lines = guest.script(guest.CELLS, 7, 50).splitlines()
    found = [line.split()[3:5] for line in lines if line.startswith(f'echo "run {number} ')]
    assert sorted(found) == sorted([name, disk] for name in guest.CELLS for disk in guest.WAYS)
    assert guest.RUN.findall(f"run {number} r4k16 xvdb 120 5000\r\n") == [(str(number), "r4k16", "xvdb", "120", "5000")]


def test_an_attach_is_judged_by_its_time_and_its_processes() -> None:
    found = Results(date="2026-01-01T0000Z")
    for number in range(7):
        for way, seconds, forks in (("phy", 0.6, 55), ("tap2", 0.45, 11), ("script", 0.2, 21)):
            found.attaches.append(AttachRun(number, "attach on Debian 12", way, seconds * (1 + number), 0.1, forks))
    assert [(row.name, row.value, row.verdict) for row in verdict.targets(found)] == [
        ("attach on Debian 12: time of tap2 / phy", "0.75 [0.75, 0.75]", verdict.MISSED),
        ("attach on Debian 12: processes, tap2", "11 [11, 11]", verdict.REACHED),
        ("attach on Debian 12: time of script / phy", "0.33 [0.33, 0.33]", verdict.REACHED),
        ("attach on Debian 12: processes, script", "21 [21, 21]", verdict.MISSED),
    ]
    assert any(re.search(r"attach on Debian 12 +phy +2\.40", line) for line in report.lines(found))


# JSON and the report


def test_results_survive_their_json(tmp_path: Path) -> None:
    found = two_sides(100e3, 50e3, of_mine={}, of_other={})
    found.counts.append(Count("ram/raw/rr32", "tapdisk raw", 0.5, None, {"sendmsg": 0.25}))
    found.checks.append(Check("rss", "tapdisk vpc", 4.5, "MB"))
    found.jobs.append(JobRun(0, "copy", "cp", 1.0, 2.0, 0.5))
    found.vm_runs.append(VmRun(0, "kernel of Debian 13", "file/r4k1", "loop", 1000, 0.5))
    found.vm_counts.append(VmCount("kernel of Debian 13", "file/r4k16", "copy", 0.25, 1.0, {"ioctl": 0.125}))
    found.attaches.append(AttachRun(0, "attach on Debian 12", "phy", 0.6, 0.2, 55))
    path = tmp_path / "r.json"
    results.save(found, path, verdict.summary(found))
    assert results.load(path) == found
    assert json.loads(path.read_text())["summary"][0]["verdict"] == verdict.REACHED


def test_json_of_before_there_were_works_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    results.save(Results(date="2026-01-01T0000Z"), path, [])
    document = json.loads(path.read_text())
    del document["jobs"]
    path.write_text(json.dumps(document))
    assert results.load(path) == Results(date="2026-01-01T0000Z")


def test_other_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"runs": []}')
    with pytest.raises(ValueError, match="not the results of this bench"):
        results.load(path)


def test_the_report_shows_every_server_and_what_is_concluded() -> None:
    found = two_sides(200e3, 100e3, of_mine={}, of_other={"server_cpu": 1.0})
    found.failures.append("ram/full/rr32: qsd vpc: ended")
    text = "\n".join(report.lines(found))
    for word in (
        "tapdisk raw",
        "qemu-nbd raw",
        "no-server raw",
        "2.00 [2.00, 2.00]",
        "98.4%",
        "IOPS 1.5",
        "FAILED: ram",
    ):
        assert word in text
