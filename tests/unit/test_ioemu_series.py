# SPDX-License-Identifier: LGPL-2.1-only
"""What all series of ioemu-patches have in common, without the sources that they are for."""

import re
import subprocess
from collections import Counter
from email import message_from_string
from email.header import decode_header, make_header

import pytest
from patchseries import mail

from tests.ioemu import qemu, trad
from tests.ioemu.maildiff import diffs, statistics
from tests.ioemu.series import COVER, PATCHES, Series

ALL = [trad.SERIES, *qemu.SERIES.values()]
EACH = pytest.mark.parametrize("series", ALL, ids=lambda series: str(series.directory.name))
EACH_PATCH = pytest.mark.parametrize(
    ("series", "name"),
    [pytest.param(one, name, id=f"{one.directory.name}/{name[:4]}") for one in ALL for name in one.patches()],
)
PREFIXES = {"qemu-traditional": "qemu-xen-traditional"}


def test_every_directory_is_a_series_that_is_checked() -> None:
    assert sorted(series.directory for series in ALL) == sorted(path for path in PATCHES.iterdir() if path.is_dir())


@EACH
def test_series_lists_each_patch_in_order(series: Series) -> None:
    names = series.patches()
    assert sorted(path.name for path in series.directory.glob("*.patch")) == [COVER, *names]
    assert [name[:5] for name in names] == [f"{number:04}-" for number in range(1, len(names) + 1)]
    assert {path.name for path in series.directory.iterdir()} == {COVER, "series", "base", *names}


@EACH
def test_mails_are_those_of_one_series_and_are_made_alike_everywhere(series: Series) -> None:
    names = series.patches()
    prefix = PREFIXES.get(series.directory.name, series.directory.name)
    for number, name in enumerate([COVER, *names]):
        first, _, rest = series.text(name).partition("\n")
        assert first == f"From {mail.ZERO} Mon Sep 17 00:00:00 2001"
        message = message_from_string(rest)
        subject = re.sub(r"\s+", " ", str(make_header(decode_header(message["Subject"]))))
        assert re.match(rf"\[PATCH {re.escape(prefix)} {number}/{len(names)}\] [a-z/-]+: ", subject), subject
        assert re.sub(r"\s+", " ", message["From"]) == mail.AUTHOR
        assert message["Date"] == f"Fri, 27 Nov 2026 00:{number:02}:00 +0000"
        assert not re.search(r"/(?:var/tmp|tmp|home|root|work)/|@localhost", rest)


@EACH_PATCH
def test_patch_has_reason_sign_off_and_whole_hunks(series: Series, name: str) -> None:
    text = series.text(name)
    message = text.partition("\n---\n")[0].partition("\n\n")[2]
    assert len(message.partition("\nSigned-off-by:")[0].split()) > 20
    assert message.endswith(f"\n\nSigned-off-by: {mail.AUTHOR}")
    assert max(len(line) for line in message.splitlines()[:-1]) <= 76
    command = ["git", "apply", "--numstat", str(series.directory / name)]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    counts = {path: (int(more), int(less)) for more, less, path in (row.split() for row in result.stdout.splitlines())}
    assert counts == {diff.path: (diff.count("+"), diff.count("-")) for diff in diffs(text)}
    assert all(sum(pair) for pair in counts.values()), "a file without a change"
    by_file, total = statistics(text)
    assert by_file == {path: sum(pair) for path, pair in counts.items()}
    assert total == (len(counts), sum(more for more, _ in counts.values()), sum(less for _, less in counts.values()))


@EACH
def test_each_patch_goes_on_where_the_last_one_ended(series: Series) -> None:
    now: dict[str, str] = {}
    for name in series.patches():
        for diff in diffs(series.text(name)):
            assert diff.old == now.get(diff.path, diff.old), f"{name}: {diff.path}"
            now[diff.path] = diff.new


@EACH
def test_cover_letter_counts_what_the_patches_change(series: Series) -> None:
    cover, names = series.text(COVER), series.patches()
    by_file, (files, more, less) = statistics(cover)
    all_diffs = [diff for name in names for diff in diffs(series.text(name))]
    assert set(by_file) == {diff.path for diff in all_diffs}
    assert files == len(by_file)
    # a line that two patches change counts once there
    assert more - less == sum(diff.count("+") - diff.count("-") for diff in all_diffs)
    patched = Counter(diff.path for diff in all_diffs)
    for diff in all_diffs:
        if patched[diff.path] == 1:
            assert by_file[diff.path] == diff.count("+") + diff.count("-")
    shortlog = cover.partition(f" ({len(names)}):\n")[2].partition("\n\n")[0]
    subjects = [series.text(name).partition("] ")[2].partition("\n\n")[0].replace("\n", "") for name in names]
    assert [line.strip() for line in shortlog.splitlines()] == subjects
    deleted = sorted(diff.path for diff in all_diffs if diff.deleted)
    assert re.findall(r"^ delete mode 100644 (\S+)$", cover, re.MULTILINE) == deleted


@EACH
def test_what_is_added_has_no_loose_ends(series: Series) -> None:
    for name in series.patches():
        for diff in diffs(series.text(name)):
            for line in (line[1:] for line in diff.lines if line.startswith("+")):
                assert line == line.rstrip()
                assert len(line) <= 80 or "logfile" in line, line
