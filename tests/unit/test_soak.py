# SPDX-License-Identifier: LGPL-2.1-only
"""The soak: what it counts, how it goes on, what it concludes from libFuzzer, gcov and crash slices, and its page."""

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.soak import coverage, crashpart, diskpart, fuzz, report, state, work
from tests.soak.__main__ import parser, wanted_of
from tests.soak.runner import Runner
from tests.soak.state import Covered, Finding, Slice, State, StateError
from tests.soak.work import Programs, SoakError, Stopped, Task


def a_slice(name: str, count: int, seed: int = 1, part: str = "fuzz", **detail: int) -> Slice:
    return Slice(part, name, seed, count, 2.0, "abc", "2026-01-01T00:00:00+00:00", detail)


class FakePart:
    """Runs nothing, and says that it did."""

    name = "fuzz"
    slice_seconds = 25.0

    def __init__(self, tasks: Sequence[Task], bad_seed_after: int | None = None) -> None:
        self._tasks = tasks
        self._good = bad_seed_after
        self.ran: list[tuple[str, int, int]] = []

    def tasks(self) -> Sequence[Task]:
        return self._tasks

    def prepare(self) -> None:
        return

    def guess(self, task: Task) -> int:
        return 10

    def run(self, task: Task, seed: int, count: int, seconds: float) -> tuple[Slice, list[Finding]]:
        self.ran.append((task.name, seed, count))
        found = []
        if self._good is not None and len(self.ran) > self._good:
            found = [Finding("fuzz", task.name, seed, "a fault", "again", "abc")]
        return a_slice(task.name, count, seed), found


def runner(tmp_path: Path, part: FakePart, start: State | None = None, seed: int = 5, scale: float = 1) -> Runner:
    return Runner(start or State(), tmp_path / "state.json", wanted_of([part], scale), seed, lambda text: None)


def test_a_soak_has_the_counts_that_are_promised() -> None:
    counts = {target.name: target.count for target in fuzz.TARGETS}
    assert sum(counts.values()) >= 50_000_000
    assert counts["fuzz-chain"] >= 2_000_000
    assert {t.name for t in fuzz.TARGETS if t.on_chains} == {"fuzz-chain", "fuzz-disk", "fuzz-change"}
    assert crashpart.STATES == 100_000


def test_every_fuzz_target_is_run_and_has_a_corpus() -> None:
    sources = {path.stem for target in fuzz.TARGETS for path in target.source.glob("fuzz-*.c")} - {"fuzz-main"}
    assert {target.name for target in fuzz.TARGETS} == sources
    for target in fuzz.TARGETS:
        inputs = list((target.source / "corpus" / target.name).iterdir())
        assert inputs
        assert max(path.stat().st_size for path in inputs) <= target.max_len


# The runner


def test_all_counts_are_reached_and_none_is_passed(tmp_path: Path) -> None:
    part = FakePart([Task("fuzz", "a", 1000), Task("fuzz", "b", 35)])
    run = runner(tmp_path, part)
    run.run(3, None)
    assert not run.missing()
    assert run.state.done("fuzz", "a") == 1000
    assert run.state.done("fuzz", "b") == 35


def test_a_part_of_the_counts(tmp_path: Path) -> None:
    run = runner(tmp_path, FakePart([Task("fuzz", "a", 1000)]), scale=0.1)
    run.run(1, None)
    assert run.state.done("fuzz", "a") == 100


def test_it_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    start = State((a_slice("a", 990),))
    part = FakePart([Task("fuzz", "a", 1000)])
    run = runner(tmp_path, part, start)
    run.run(1, None)
    assert [count for _, _, count in part.ran] == [10]
    assert state.load(tmp_path / "state.json") == run.state
    again = FakePart([Task("fuzz", "a", 1000)])
    runner(tmp_path, again, state.load(tmp_path / "state.json")).run(1, None)
    assert not again.ran


def test_the_seed_decides_the_slices_seeds(tmp_path: Path) -> None:
    def seeds(seed: int, start: State | None = None) -> list[int]:
        part = FakePart([Task("fuzz", "a", 40)])
        runner(tmp_path, part, start, seed).run(1, None)
        return [s for _, s, _ in part.ran]

    assert seeds(5) == seeds(5)
    assert seeds(5) != seeds(6)
    assert not set(seeds(5)) & set(seeds(5, State((a_slice("a", 1),))))


def test_a_finding_ends_it_and_is_kept(tmp_path: Path) -> None:
    part = FakePart([Task("fuzz", "a", 1000)], bad_seed_after=2)
    run = runner(tmp_path, part)
    run.run(1, None)
    assert len(part.ran) == 3
    assert run.missing()
    assert [f.text for f in state.load(tmp_path / "state.json").findings] == ["a fault"]


def test_time_that_is_over_ends_it(tmp_path: Path) -> None:
    part = FakePart([Task("fuzz", "a", 1000)])
    run = runner(tmp_path, part)
    run.run(2, 0.5)
    assert not part.ran
    assert run.missing() == {"a": 1000}


def test_what_was_not_run_is_told_by_the_caller(tmp_path: Path) -> None:
    class Broken(FakePart):
        def run(self, task: Task, seed: int, count: int, seconds: float) -> tuple[Slice, list[Finding]]:
            raise SoakError("no such program")

    with pytest.raises(SoakError, match="no such program"):
        runner(tmp_path, Broken([Task("fuzz", "a", 10)])).run(2, None)


def test_a_state_that_is_no_state_is_refused(tmp_path: Path) -> None:
    assert state.load(tmp_path / "none") == State()
    for text in ("", "{}", '{"slices": [{}], "findings": [], "coverage": {}}'):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(StateError, match="--fresh"):
            state.load(tmp_path / "state.json")


def test_stopping_ends_programs_and_those_to_come() -> None:
    programs = Programs()
    ended: list[float] = []

    def one() -> None:
        with pytest.raises(Stopped):
            programs.run(["sleep", "60"])
        ended.append(time.monotonic())

    thread = threading.Thread(target=one)
    begun = time.monotonic()
    thread.start()
    time.sleep(0.3)
    programs.stop()
    thread.join(20)
    assert ended
    assert ended[0] - begun < 20
    with pytest.raises(Stopped):
        programs.run(["true"])


def test_what_is_ended_may_clean_up(tmp_path: Path) -> None:
    programs = Programs()
    half = tmp_path / "half"
    script = f"trap 'rm {half}; exit 1' TERM; touch {half}; while :; do sleep 0.1; done"

    def one() -> None:
        with pytest.raises(Stopped):
            programs.run(["sh", "-c", script])

    thread = threading.Thread(target=one)
    thread.start()
    while not half.exists():
        time.sleep(0.05)
    programs.stop()
    thread.join(20)
    assert not half.exists()


def test_a_program_that_is_left_keeps_the_lock(tmp_path: Path) -> None:
    held = work.take_lock(tmp_path / "lock", lambda text: None)
    left = subprocess.Popen(["sh", "-c", "read x"], stdin=subprocess.PIPE, pass_fds=(held,))
    os.close(held)
    said: list[str] = []

    def end_it(text: str) -> None:
        assert left.stdin and left.poll() is None
        said.append(text)
        left.stdin.close()

    os.close(work.take_lock(tmp_path / "lock", end_it))
    assert len(said) == 1 and "waiting" in said[0]
    left.wait()


# What programs print

LIBFUZZER = """\
INFO: Seed: 77
#75\tINITED cov: 69 ft: 117 corp: 25/12Kb exec/s: 0 rss: 33Mb
#2000\tNEW    cov: 70 ft: 120 corp: 26/12Kb lim: 512 exec/s: 0 rss: 33Mb L: 512/512 MS: 1 ChangeBit-
"""
STATS = "stat::number_of_executed_units: 2345\nstat::average_exec_per_sec:     0\n"


def test_libfuzzers_figures() -> None:
    found = fuzz.parse(LIBFUZZER + "Done 2345 runs in 1 second(s)\n" + STATS)
    assert found.executions == 2345
    assert found.counters == {"cov": 70, "ft": 120, "corpus": 26}
    assert found.artifact is None


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("/x/use.c:50: does not hold: a <= b\n==1== ERROR: libFuzzer: deadly signal\n", "does not hold: a <= b"),
        ("/x/bat.c:7:3: runtime error: signed integer overflow\n", "runtime error"),
        ("==1==ERROR: AddressSanitizer: heap-buffer-overflow on address\n", "heap-buffer-overflow"),
        ("==1== ERROR: libFuzzer: timeout after 20 seconds\n", "timeout after 20"),
        ("==1== ERROR: libFuzzer: deadly signal\n", ""),
    ],
)
def test_what_libfuzzer_found(fault: str, text: str) -> None:
    found = fuzz.parse(LIBFUZZER + fault + "Test unit written to /tmp/fuzz-bat-crash-12\n" + STATS)
    assert found.artifact == Path("/tmp/fuzz-bat-crash-12")
    assert text in found.fault
    assert bool(text) == bool(found.fault)
    assert found.executions == 2345


def test_a_program_that_died_without_a_word_has_what_it_showed_last() -> None:
    assert fuzz.parse(LIBFUZZER).executions == 2000
    assert fuzz.parse("no such file").executions == 0


def fuzz_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> fuzz.FuzzPart:
    program = tmp_path / "fuzz-bat-search"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    monkeypatch.setattr(fuzz, "SEARCH", tmp_path)
    monkeypatch.setattr(fuzz, "FINDINGS", tmp_path)
    monkeypatch.setattr(fuzz, "DIRECTORY", tmp_path)
    return fuzz.FuzzPart(Programs(), "abc")


def test_a_slice_that_finds_something_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = LIBFUZZER + "x.c:1: does not hold: y\nTest unit written to /tmp/bad\n" + STATS
    part = fuzz_part(monkeypatch, tmp_path, f"cat <<'END'\n{text}END\nexit 77\n")
    done, findings = part.run(Task("fuzz", "fuzz-bat", 5000), 9, 5000, 3)
    assert (done.count, done.seed, done.detail["cov"]) == (2345, 9, 70)
    assert len(findings) == 1
    assert "does not hold: y" in findings[0].text
    assert findings[0].repeat.endswith("fuzz/fuzz-bat /tmp/bad")


def test_a_search_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    part = fuzz_part(monkeypatch, tmp_path, "echo broken; exit 1\n")
    with pytest.raises(SoakError, match="broken"):
        part.run(Task("fuzz", "fuzz-bat", 5000), 9, 5000, 3)


def test_gcovs_lines_and_functions() -> None:
    def line(number: int, count: int) -> dict[str, object]:
        return {"line_number": number, "count": count}

    files = [
        {
            "file": "tapdisk-c/vhd/bat.c",
            "lines": [line(1, 3), line(2, 0), line(2, 1), line(9, 0)],
            "functions": [{"execution_count": 3}, {"execution_count": 0}],
        },
        {"file": "tapdisk-c/common/bytes.h", "lines": [line(1, 1)], "functions": []},
        {"file": "tapdisk-c/io/posix.c", "lines": [line(1, 1)], "functions": []},
    ]
    text = json.dumps({"files": files}) + "\n" + json.dumps({"files": []})
    found = coverage.from_gcov(text, "vhd")
    assert found == [Covered("bat.c", (2, 3), (1, 2))]
    assert coverage.total([*found, Covered("io.c", (1, 7), (1, 1))]) == Covered("all", (3, 10), (2, 3))


def crash_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> crashpart.CrashPart:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(crashpart, "DIRECTORY", tmp_path)
    return crashpart.CrashPart(Programs(), "abc")


def test_a_crash_slice_and_its_losses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = json.dumps({"states": 7, "operations": {"write": 4, "fill": 3}, "losses": ["sector 4 is gone"]})
    part = crash_part(monkeypatch, tmp_path, f"echo noise\necho '{crashpart.MARK}{result}'\n")
    done, findings = part.run(Task("crash", "crash", 100), 3, 7, 1)
    assert (done.count, done.detail) == (7, {"write": 4, "fill": 3})
    assert [f.text for f in findings] == ["sector 4 is gone"]
    assert "--seed=3 --states=7" in findings[0].repeat


def test_a_crash_slice_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    part = crash_part(monkeypatch, tmp_path, "echo trouble; exit 1\n")
    with pytest.raises(SoakError, match="trouble"):
        part.run(Task("crash", "crash", 100), 3, 7, 1)


def test_without_its_module_the_crash_part_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SoakError, match="the crash part is missing"):
        crashpart.CrashPart(Programs(), "abc").prepare()


def disk_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> diskpart.DiskPart:
    """What its program does is in script."""
    program = tmp_path / "test-vhd-soak"
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    monkeypatch.setattr(diskpart, "PROGRAM", program)
    return diskpart.DiskPart(Programs(), "abc")


def test_rounds_of_the_data_path_and_the_one_that_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task, first = Task("data path", "data path", 100), 3 << 20
    each = 'for i in $(seq $SOAK_ROUNDS); do printf "SOAK_SEED=%d\\r" $((SOAK_SEED + i - 1)); done\n'
    done, findings = disk_part(monkeypatch, tmp_path, each).run(task, 3, 7, 1)
    assert (done.count, findings) == (7, [])
    fault = f'printf "SOAK_SEED={first + 4}\\r"; echo "fault engine: a request is queued twice"; exit 1\n'
    done, findings = disk_part(monkeypatch, tmp_path, fault).run(task, 3, 7, 1)
    assert done.count == 1
    assert "queued twice" in findings[0].text
    assert f"SOAK_SEED={first + 4} " in findings[0].repeat


def test_rounds_that_were_not_run_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SoakError, match="ran 0 of 7 rounds"):
        disk_part(monkeypatch, tmp_path, "exit 0\n").run(Task("data path", "data path", 100), 3, 7, 1)


def test_the_page_has_commits_seeds_dates_and_figures(tmp_path: Path) -> None:
    part = FakePart([Task("fuzz", "fuzz-chain", 2_000_000)])
    crash = crashpart.CrashPart(Programs(), "abc")
    found = State(
        (
            a_slice("fuzz-chain", 1_999_000, 11, cov=700, ft=2000, corpus=300),
            a_slice("fuzz-chain", 1_000, 12, cov=701, ft=2001, corpus=301),
            a_slice("crash", 60, 13, part="crash", write=40, fill=20),
        ),
        (Finding("crash", "crash", 13, "sector 4 is gone", "do this", "abc"),),
        {"fuzz targets": (Covered("bat.c", (9, 10), (3, 3)),)},
    )
    machine = {"cpu": "a CPU", "cpus": 2, "memory_mib": 1024}
    text = report.text(found, [*wanted_of([part], 1), *wanted_of([crash], 1)], machine, 5)
    assert "2026-01-01T00:00:00" in text
    assert "commit abc (3 slices)" in text
    assert "2,000,000 executions, 2,000,000 of them on whole chains; findings: 0." in text
    assert "| 2,000,000 | 2,000,000 | 500,000 | 701 | 2,001 | 301 |" in text
    assert "| bat.c | 9/10 (90%) | 3/3 (100%) |" in text
    assert "60 states of 100,000; losses: 1." in text
    assert "| write | 40 |" in text
    assert "Seeds: 13." in text
    assert "Again: `do this`" in text


def test_the_section_on_kills_replaces_the_one_before() -> None:
    kills = FakePart([Task("kills", "blktap", 200)])
    detail = {"allocating": 100, "held": 900, "reissued": 800, "outlived": 3, "fenced": 7, "kept": 11, "direct": 5000, "slow": 50, "longest_ms": 450}
    found = State((a_slice("blktap", 150, 4, part="kills", **detail), a_slice("blktap", 50, 5, part="kills", held=100)))
    section = report.kills_section(found, wanted_of([kills], 1))
    assert "200 kills of 200 under load, seen by the disk's user: 0." in section
    assert "| blktap | 200 | 200 | 100 | 50 | 1,000 | 800 | 3 | 7 | 11 | 5,000 | 450 |" in section
    page = "# Soak\n\n## Fuzzing\n\nmuch\n\n## Kills\n\nold\n\n## Crash states\n\nmany\n"
    assert report.splice(page, section) == page.replace("## Kills\n\nold\n", section)
    assert report.splice(page.replace("## Kills\n\nold\n\n", ""), section).endswith(f"many\n\n{section}")


def test_the_commands_defaults() -> None:
    args = parser().parse_args([])
    assert (args.scale, args.seconds, args.seed, args.fresh, args.part) == (1.0, None, None, False, None)
    assert work.SLICE_SECONDS <= 60
