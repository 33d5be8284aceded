# SPDX-License-Identifier: LGPL-2.1-only
"""The calls of xl that xenblk takes, but for create: how they are read, and what xl gets instead.

glibc's getopt (as getopt(1)) and libxlutil, which xl itself uses, are the judges.
"""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lib import front
from tests.lib.xlhost import Host
from xenblk import attach, diskspec, guestconfig, libxl, xlcall
from xenblk.errors import UsageError, UserError

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("libxl_binding")]

REPLACED = {"pdev_path", "format", "script", "backend"}


@pytest.fixture
def images_exist() -> Iterator[None]:
    """Every path is an image."""
    with mock.patch.object(diskspec, "_file_mode", return_value=0o100600):
        yield


def getopt(command: xlcall.Command, arguments: list[str]) -> tuple[list[tuple[str, str]], list[str]] | None:
    """What glibc makes of arguments, None if it finds an error."""
    options = ["-o", command.short, *(f"-l{name.replace('=', ':')}" for name in (*command.long, "help"))]
    result = subprocess.run(
        ["getopt", "-q", *options, "--", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    if result.returncode:
        return None
    words = iter(shlex.split(result.stdout))
    found = []
    for word in words:
        if word == "--":
            break
        takes_value = f"{word[1:]}:" in command.short if word[1] != "-" else f"{word[2:]}=" in command.long
        found.append((word, next(words) if takes_value else ""))
    return found, list(words)


FRAGMENTS = """-f -fx -C -Cx -s -sx -c -p -pe -ef -eCx -D -T -q -n -h -z - -- --defconfig --defconfig=x --def --d --dry
--dryrun=1 --vnc --vncviewer --vncviewer-a --help --h --live --debug --new x y a=b dom""".split() + ["", "x y"]


@given(st.sampled_from(xlcall.COMMANDS), st.lists(st.sampled_from(FRAGMENTS), max_size=6))
def test_options_are_those_that_getopt_finds(command: xlcall.Command, arguments: list[str]) -> None:
    call = xlcall.Call((command.name,), command, tuple(arguments))
    try:
        found = call.options()
    except UsageError:
        assert getopt(command, arguments) is None
    else:
        assert getopt(command, arguments) == found


@pytest.mark.parametrize(
    ("words", "head", "name"),
    [
        (["create", "x"], 1, "create"),
        (["cr"], 1, "create"),
        (["-v", "-N", "conf", "x"], 3, "config-update"),
        (["-vfN", "block-a", "x"], 2, "block-attach"),
        (["-T", "--", "rest", "x"], 3, "restore"),
        (["sa"], 1, "save"),
        (["migrate"], 1, "migrate"),
    ],
)
def test_global_options_and_short_words_are_passed_on(words: list[str], head: int, name: str) -> None:
    call = xlcall.read(words)
    assert call is not None
    assert (call.head, call.command.name, call.arguments) == (tuple(words[:head]), name, tuple(words[head:]))


@pytest.mark.parametrize("words", [[], ["-v"], ["list", "create"], ["c"], ["migr"], ["migrate-receive"], ["creates"]])
def test_other_calls_bring_no_disk(words: list[str]) -> None:
    assert xlcall.read(words) is None


def test_a_global_option_of_a_newer_xl_is_refused(host: Host) -> None:
    result = host.run("xl", "-Z", "create", host.write(f"disk = ['tap2:vhd:{host.image},xvda,w']"))
    assert (result.returncode, host.xl()) == (2, None)


@pytest.mark.parametrize("words", [["list", "-l", ""], ["-v"], [], ["create", "-h"], ["restore", "--help"], ["save"]])
def test_a_call_without_a_disk_reaches_xl_as_it_is(host: Host, words: list[str]) -> None:
    assert host.run("xl", *words).returncode == 7
    assert host.xl() == (words or [""])


@pytest.mark.parametrize("head", [["xl", "-N", "cr"], ["xl", "create"], ["-vN", "create"], ["create"]])
def test_create_is_found_after_global_options(host: Host, head: list[str]) -> None:
    config = host.write(f"disk = ['tap2:vhd:{host.image},xvda,w']")
    assert host.run(*head, config).returncode == 7
    words = head[1:] if head[0] == "xl" else head
    assert host.xl() == [*words, config, f"disk=['{host.form}']"]


def test_config_update_takes_the_domain_first(host: Host) -> None:
    config = host.write("memory = 64")
    disk = f"disk=['tap2:vhd:{host.image},xvda,w']"
    assert host.run("config-update", "a=b", config, "-d", disk).returncode == 7
    assert host.xl() == ["config-update", "a=b", config, "-d", disk, f"disk=['{host.form}']"]


def test_config_update_of_a_disk_that_is_not_there_changes_nothing(host: Host) -> None:
    result = host.run("config-update", "dom", host.write("disk = ['tap2:vhd:/no/such.vhd,xvda,w']"))
    assert (result.returncode, host.xl()) == (1, None)
    assert "/no/such.vhd: No such file or directory" in result.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["restore", "CONFIG", "saved"], ["restore", "--", "FD", "saved"]),
        (["restore", "-pe", "CONFIG", "--", "-x"], ["restore", "-p", "-e", "--", "FD", "-x"]),
        (["restore", "CONFIG", "-c", "s v"], ["restore", "-c", "--", "FD", "s v"]),
        (["save", "-c", "dom", "saved", "CONFIG"], ["save", "-c", "--", "dom", "saved", "FD"]),
        (["migrate", "-CCONFIG", "dom", "host"], ["migrate", "-C", "FD", "--", "dom", "host"]),
        (
            ["migrate", "-C", "/no", "-s", "", "dom", "host", "-eC", "CONFIG"],
            ["migrate", "-s", "", "-e", "-C", "FD", "--", "dom", "host"],
        ),
        (["-v", "rest", "CONFIG", "saved"], ["-v", "rest", "--", "FD", "saved"]),
    ],
)
def test_xl_reads_a_copy_of_the_configuration_with_the_new_form(
    host: Host, before: list[str], after: list[str]
) -> None:
    text = f"name = 'g'\ndisk = ['phy:/dev/x,xvdb,r', 'tap2:vhd:{host.image},xvda,w']\nmemory = 64"
    config = host.write(text)
    result = host.run("xl", *(word.replace("CONFIG", config) for word in before))
    assert (result.returncode, result.stderr) == (7, "")
    given = host.xl()
    assert given is not None
    assert ["FD" if word.startswith("/proc/self/fd/") else word for word in given] == after
    assert (host.directory / "xl.kind").read_text() == "regular file\n"
    copy = (host.directory / "xl.config").read_bytes()
    assert copy.startswith(text.encode() + b"\n")
    assert libxl.read_disks("test", copy) == ["phy:/dev/x,xvdb,r", host.form]


@pytest.mark.parametrize(
    "words",
    [
        ["restore", "CONFIG"],
        ["restore", "a", "b", "CONFIG"],
        ["save", "dom", "CONFIG"],
        ["save", "dom", "saved", "CONFIG", "x"],
        ["migrate", "CONFIG", "host"],
        ["migrate", "-s", "CONFIG", "dom", "host"],
    ],
)
def test_what_is_no_configuration_is_not_read(host: Host, words: list[str]) -> None:
    given = [word.replace("CONFIG", host.write("disk = ['tap2:vhd:/no,xvda,w']")) for word in words]
    host.run("xl", *given)
    assert host.xl() == given


@pytest.mark.parametrize("words", [["restore", "CONFIG", "saved"], ["save", "d", "s", "CONFIG"]])
def test_a_configuration_without_tap_disks_is_left_to_xl(host: Host, words: list[str]) -> None:
    given = [word.replace("CONFIG", host.write("disk = ['phy:/dev/x,xvdb,r']")) for word in words]
    assert host.run("xl", *given).returncode == 7
    assert host.xl() == given


@pytest.mark.parametrize(
    "specs",
    [
        ["tap2:vhd:{},xvda,w"],
        ["tap2:vhd:{}", "xvda", "w"],
        ["vdev=xvda", "tap:vhd:{}"],
        ["tap2:vhd:", "access=w,vdev=xvda", "target={}"],
    ],
)
def test_a_disk_may_come_in_several_words(host: Host, specs: list[str]) -> None:
    words = [spec.format(host.image) for spec in specs]
    assert host.run("xl", "-v", "block-a", "dom", *words).returncode == 7
    assert host.xl() == ["-v", "block-a", "--", "dom", host.form]


@pytest.mark.parametrize("specs", [["phy:/dev/x,xvda,w"], ["vdev=xvda", "target=tap2:x"], ["nonsense"], []])
def test_another_disk_is_attached_by_xl(host: Host, specs: list[str]) -> None:
    assert host.run("block-attach", "dom", *specs).returncode == 7
    assert host.xl() == ["block-attach", "dom", *specs]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("tap2:vhd:/no/such.vhd,xvda", "disk 'tap2:vhd:/no/such.vhd,xvda': /no/such.vhd: No such file"),
        ("tap2:vhd:/a,xvda,newer=1", "disk 'tap2:vhd:/a,xvda,newer=1': not understood by libxl, not attached: "),
    ],
)
def test_a_disk_that_cannot_be_attached_does_not_reach_xl(host: Host, spec: str, reason: str) -> None:
    result = host.run("block-attach", "dom", spec)
    assert (result.returncode, host.xl()) == (1, None)
    assert result.stderr.startswith(f"xenblk: {reason}")


PARTS = """tap2: tapdisk:vhd: vhd: aio: phy: , xvda vdev=xvda, /a /b, w, r access=r, discard, script=x, backend=d,
target=/c""".split()


@pytest.mark.usefixtures("images_exist", "grammar")
@given(st.lists(st.lists(st.sampled_from(PARTS), max_size=4).map("".join), min_size=1, max_size=4))
def test_words_of_a_disk_mean_to_xl_what_they_meant_together(specs: list[str]) -> None:
    """By libxlutil, which reads them one after the other."""

    def kept(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in fields.items() if key not in REPLACED}

    try:
        disk = attach.read(specs)
    except UserError:
        return
    if disk is None or disk.driver is None:
        return
    before, after = libxl.parse_disk(*specs), libxl.parse_disk(disk.rewritten)
    assert kept(before) == kept(after)
    driver = "vhd" if before["format"] == "vhd" else "aio"
    assert after["pdev_path"] == f"{driver}:{before['pdev_path']}"


@pytest.mark.usefixtures("grammar")
@given(st.lists(st.lists(st.sampled_from(PARTS), max_size=4).map("".join), min_size=1, max_size=4))
def test_a_prefix_counts_in_whichever_word_it_is(specs: list[str]) -> None:
    """libxlutil keeps every text but the prefixes in some field, so what it dropped can be counted."""
    try:
        fields = libxl.parse_disk(*specs)
    except libxl.GrammarError:
        return
    in_fields = sum(value.count("tap2:") for value in fields.values() if isinstance(value, str))
    found = [prefix for spec in specs for prefix in diskspec.prefixes(spec)]
    assert found.count("tap2") == sum(spec.count("tap2:") for spec in specs) - in_fields


def test_xl_has_the_environment_of_the_caller_in_the_c_locale(host: Host) -> None:
    given = {"PATH": "/usr/bin:/bin", "LANG": "C", "ODD": "\udcff\n"} | {
        key: value for key, value in host.environment().items() if key.startswith("XENBLK_")
    }
    command = [str(host.command), "xl", "list"]
    with subprocess.Popen(command, env=given) as process:
        assert process.wait(60) == 7
    seen = (host.directory / "xl.environ").read_bytes().split(b"\0")[:-1]
    wanted = [os.fsencode(f"{key}={value}") for key, value in given.items()]
    assert sorted(seen) == sorted([*wanted, f"XENBLK_REWRITTEN={process.pid}".encode()])


def test_ctrl_c_ends_it_as_it_would_end_xl(host: Host) -> None:
    fifo = host.directory / "pipe"
    os.mkfifo(fifo)
    with subprocess.Popen(
        [str(host.command), "create", str(fifo)], env=host.environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while Path(f"/proc/{process.pid}/wchan").read_text() != "wait_for_partner":
            assert time.monotonic() < deadline, "it doesn't open its configuration"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (-signal.SIGINT, "")


def test_an_interrupt_that_the_caller_ignores_stays_ignored(host: Host) -> None:
    command = ["sh", "-c", 'trap "" INT; exec "$0" xl list', str(host.command)]
    subprocess.run(command, env=host.environment(), timeout=60, check=False)
    assert host.ignored & 1 << (signal.SIGINT - 1)
    host.run("xl", "list")
    assert not host.ignored & 1 << (signal.SIGINT - 1)


@pytest.mark.parametrize(
    "words", [["create", "CONFIG"], ["restore", "CONFIG", "saved"], ["block-attach", "d", "tap2:vhd:{}", "xvda"]]
)
def test_from_the_front_to_xenblk_and_through_the_front_to_xl(host: Host, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "front").mkdir()
    xl = front.install(tmp_path / "front")
    (xl.root / "sbin/xenblk").write_bytes(host.command.read_bytes())
    config = host.write(f"disk = ['tap2:vhd:{host.image},xvda,w']")
    environment = host.environment() | {"XENBLK_XL": xl.xl}
    given = [word.replace("CONFIG", config).format(host.image) for word in words]
    result = xl.run(*given, **environment, FAKE="exit 9")
    assert (result.returncode, result.stderr) == (9, "")
    seen = xl.given("xl")
    assert seen is not None
    assert seen[0] == words[0]
    assert seen != given
    assert b"XENBLK_REWRITTEN" not in (xl.root / "xl.environ").read_bytes()


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=40))
def test_a_setting_after_any_text_of_the_last_line_is_read(text: str) -> None:
    """The copy for restore, save and migrate is the file and a line more, whether or not the file ends its last one."""
    comment = f"# {text}".replace("\n", " ")
    setting = guestconfig.disk_setting([diskspec.Disk("x", "", "x")])
    assert libxl.read_disks("test", f"{comment}\n{setting}\n".encode()) == ["x"]


@pytest.mark.parametrize("quote", ["'", '"', "'''", '"""'])
@pytest.mark.parametrize("end", ["\n", "\\\n"])
def test_no_string_of_a_configuration_goes_beyond_its_line(quote: str, end: str) -> None:
    """So a line that begins as a comment is one: the front leaves it out."""
    with pytest.raises(libxl.GrammarError, match="config parsing error"):
        libxl.read_disks("test", f"disk = [{quote}phy:/a,xvda{end}# tap2:/b,xvdb{quote}]\n".encode())
    assert libxl.read_disks("test", b"disk = ['phy:/a,xvda',\n # 'tap2:/b,xvdb',\n]\n") == ["phy:/a,xvda"]
