# SPDX-License-Identifier: LGPL-2.1-only
"""Which lines and functions of tapdisk-c/vhd are run, by gcc's counters: by the inputs of the fuzz targets, and by the
C unit tests."""

import json
from collections.abc import Iterable
from pathlib import Path

from tests.soak.fuzz import TARGETS, corpora
from tests.soak.state import Covered
from tests.soak.work import BUILD, Programs, SoakError, make

OUT = BUILD / "cov" / "tapdisk-c"
BY_FUZZ, BY_UNITS = "fuzz targets", "C unit tests"


def from_gcov(text: str, directory: str) -> list[Covered]:
    """What gcov tells, as JSON, of sources of a directory ("vhd")."""
    found = []
    for line in text.splitlines():
        for file in json.loads(line)["files"]:
            path = Path(file["file"])
            if path.parent.name != directory or path.suffix != ".c":
                continue
            lines: dict[int, bool] = {}
            for entry in file["lines"]:
                number = entry["line_number"]
                lines[number] = lines.get(number, False) or entry["count"] > 0
            functions = [f["execution_count"] > 0 for f in file["functions"]]
            found.append(
                Covered(path.name, (sum(lines.values()), len(lines)), (sum(functions), len(functions))),
            )
    return sorted(found, key=lambda c: c.file)


def total(files: Iterable[Covered]) -> Covered:
    """All of them as one."""
    files = list(files)
    return Covered(
        "all",
        (sum(c.lines[0] for c in files), sum(c.lines[1] for c in files)),
        (sum(c.functions[0] for c in files), sum(c.functions[1] for c in files)),
    )


def _counted(programs: Programs) -> tuple[Covered, ...]:
    # The notes of all: what was not run at all has no data, and counts.
    text = []
    for data in sorted((OUT / "vhd").glob("*.gcno")):
        # One by one: its warnings would be in the middle of another's line.
        status, out = programs.run(["gcov", "--json-format", "--stdout", data])
        if status:
            raise SoakError(f"{out[-2000:]}\ngcov failed; its output is above")
        text += [line for line in out.splitlines() if line.startswith("{")]
    return tuple(from_gcov("\n".join(text), "vhd"))


def _reset() -> None:
    for data in OUT.rglob("*.gcda"):
        data.unlink()


def measure(programs: Programs) -> dict[str, tuple[Covered, ...]]:
    """Both, each from a build for it."""
    tests = [f"{OUT}/tests/{path.stem}" for path in sorted((BUILD.parent / "tapdisk-c/tests").glob("test-*.c"))]
    targets = [target for target in TARGETS if not target.driver]
    replays = [f"{OUT}/fuzz/{target.name}" for target in targets]
    make(programs, "CC=gcc", "MODE=cov", "all", *tests, *replays)
    result = {}
    _reset()
    for target, replay in zip(targets, replays, strict=True):
        _run(programs, [replay, *corpora(target.name)])
    result[BY_FUZZ] = _counted(programs)
    _reset()
    for test in tests:
        _run(programs, [test])
    result[BY_UNITS] = _counted(programs)
    return result


def _run(programs: Programs, argv: list[str | Path]) -> None:
    status, out = programs.run(argv)
    if status:
        raise SoakError(f"{out[-4000:]}\n{argv[0]} failed; its output is above")
