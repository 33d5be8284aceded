# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk create and rewrite, as installed, with a program in xl's place that records what it is given."""

import json
import os
import signal
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lib.xlhost import Host
from xenblk import create, guestconfig, libxl, xlcall
from xenblk.errors import UsageError

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("libxl_binding")]

def seen_by_xl(arguments: list[str]) -> list[str]:
    """The disks that xl would use, by its own parser."""
    source = read_arguments(arguments)
    assert source is not None
    return libxl.read_disks("test", guestconfig.read_text(source))


def read_arguments(arguments: list[str]) -> guestconfig.Source | None:
    """What xenblk makes of the arguments of xl create."""
    call = xlcall.read(["create", *arguments])
    assert call is not None
    return create.source(call)


def test_tap_disks_are_rewritten_and_everything_else_is_passed_on(host: Host) -> None:
    config = host.write(f"name = 'g'\ndisk = ['phy:/dev/x,xvdb,r', 'tap2:vhd:{host.image},xvda,w']\nmemory = 64")
    result = host.run("create", "-c", config, "-q", "vcpus=2")
    assert (result.returncode, result.stderr) == (7, "")
    arguments = host.xl()
    assert arguments is not None
    assert arguments[:5] == ["create", "-c", config, "-q", "vcpus=2"]
    assert len(arguments) == 6
    assert seen_by_xl(arguments[1:]) == ["phy:/dev/x,xvdb,r", host.form]


def test_a_guest_without_tap_disks_is_left_to_xl(host: Host) -> None:
    config = host.write("disk = ['phy:/dev/x,xvdb,r']")
    assert host.run("create", config, "-p").returncode == 7
    assert host.xl() == ["create", config, "-p"]
    assert not (host.directory / "run").exists()


@pytest.mark.parametrize("text", ["disk = ['phy:x,y,z,q']", "x = ", "disk = ['nonsense']", "name='g'"])
def test_what_xl_refuses_is_left_to_xl(host: Host, text: str) -> None:
    config = host.write(text)
    assert host.run("create", config).returncode == 7
    assert host.xl() == ["create", config]


@pytest.mark.parametrize("disk", ["tap2:vhd:{},xvda,w,of-a-newer-xen=1", "tap9:vhd:{},xvda,w"])
def test_a_tap_disk_that_is_not_understood_does_not_reach_xl(host: Host, disk: str) -> None:
    """xl may be newer than the libxlutil here, accept it and give the image to QEMU."""
    config = host.write(f"disk = ['{disk.format(host.image)}']")
    result = host.run("create", config)
    assert result.returncode == 1
    assert result.stderr.startswith(f"xenblk: {config}: not understood by libxl, nothing was started: ")
    assert result.stderr.count("\n") == 1
    assert host.xl() is None


def test_a_disk_that_is_refused_is_named_and_nothing_is_started(host: Host) -> None:
    config = host.write("disk = ['tap2:vhd:/no/such.vhd,xvda,w']")
    result = host.run("create", config)
    assert result.returncode == 1
    assert result.stderr == (
        f"xenblk: {config}: disk 'tap2:vhd:/no/such.vhd,xvda,w': "
        "/no/such.vhd: No such file or directory; correct the path or make the image\n"
    )
    assert host.xl() is None


@pytest.mark.parametrize("other", ["tap2:aio:{}/link,xvdb,r", "file:{}/a.vhd,xvdb,w", "{}/a.vhd,raw,xvdb,w"])
def test_an_image_that_a_guest_has_twice_is_refused(host: Host, other: str) -> None:
    """Each by itself could be opened."""
    (host.directory / "link").symlink_to("a.vhd")
    text = f"name='g'\nmemory=64\ndisk = ['tap2:vhd:{host.image},xvda,w', '{other.format(host.directory)}']\n"
    result = host.run("create", host.write(text))
    assert (result.returncode, host.xl()) == (1, None)
    assert ": is the guest's xvda too, and one of them writes; name another image\n" in result.stderr
    # whoever only reads may have it twice
    text = f"name='g'\nmemory=64\ndisk = ['tap2:vhd:{host.image},xvda,r', 'tap2:vhd:{host.image},xvdb,r']\n"
    assert host.run("create", host.write(text)).returncode == 7


def test_settings_on_the_command_line_count_as_for_xl(host: Host) -> None:
    config = host.write("disk = ['tap2:vhd:/no/such.vhd,xvda,w']")
    more = f"disk=['tap2:aio:{host.image},xvda,r']"
    assert host.run("create", config, more, "disk+=['phy:/dev/x,xvdb,w']").returncode == 7
    arguments = host.xl()
    assert arguments is not None
    form = f"format=raw,script=block-xenblk,vdev=xvda,access=r,target=aio:{host.image}"
    assert seen_by_xl(arguments[1:]) == [form, "phy:/dev/x,xvdb,w"]


def test_a_guest_may_be_all_on_the_command_line(host: Host) -> None:
    assert host.run("create", "/dev/null", f"disk=['tap:aio:{host.image},xvda,w']").returncode == 7
    arguments = host.xl()
    assert arguments is not None
    assert len(arguments) == 4


@pytest.mark.parametrize("name", ["a b.vhd", "a,b.vhd", "a'b\".vhd", "a\\b.vhd", "ü.vhd", "a:b=c.vhd", "[#;].vhd"])
def test_any_file_name_reaches_xl(host: Host, name: str) -> None:
    (host.directory / name).write_bytes(b"")
    spec = f"tap2:vhd:vdev=xvda,access=w,target={host.directory}/{name}"
    config = host.write(f"disk = [{guestconfig.quote(spec)}]")
    assert host.run("create", config).returncode == 7
    arguments = host.xl()
    assert arguments is not None
    (disk,) = seen_by_xl(arguments[1:])
    assert libxl.parse_disk(disk)["pdev_path"] == f"vhd:{host.directory}/{name}"


def test_a_configuration_that_can_be_read_only_once_is_refused(host: Host) -> None:
    fifo = host.directory / "pipe"
    os.mkfifo(fifo)
    config = f"disk = ['tap2:vhd:{host.image},xvda,w']"
    with subprocess.Popen(["bash", "-c", 'printf %s "$1" >"$0"', str(fifo), config]) as writer:
        result = host.run("create", str(fifo))
        writer.kill()
    assert (result.returncode, host.xl()) == (1, None)
    assert "not a regular file" in result.stderr


def test_a_missing_configuration_is_named(host: Host) -> None:
    result = host.run("create", "/no/such.cfg")
    assert result.returncode == 1
    assert result.stderr.startswith("xenblk: /no/such.cfg: No such file or directory; ")


def test_a_missing_xl_is_named(host: Host) -> None:
    (host.directory / "xl").unlink()
    result = host.run("create", host.write("name='g'"))
    assert result.returncode == 1
    assert "/xl: No such file or directory; install xen-utils-common" in result.stderr


def test_xl_gets_the_signals_that_a_shell_would_give_it(host: Host) -> None:
    host.run("create", host.write("name='g'"))
    assert not host.ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


@pytest.mark.parametrize("by_hand", [False, True])
def test_tapdisk_finds_the_settings_of_xenblk_yaml(host: Host, by_hand: bool) -> None:
    (host.directory / "xenblk.yaml").write_text("engine: posix\n")
    disk = host.form if by_hand else f"tap2:vhd:{host.image},xvda,w"
    assert host.run("create", host.write(f"disk = ['{disk}']")).returncode == 7
    assert "engine=posix\n" in (host.directory / "run" / "config").read_text()


def test_wrong_settings_start_nothing(host: Host) -> None:
    (host.directory / "xenblk.yaml").write_text("engin: posix\n")
    result = host.run("create", host.write(f"disk = ['tap2:vhd:{host.image},xvda,w']"))
    assert (result.returncode, host.xl()) == (1, None)
    assert "xenblk.yaml:1: unknown key engin; did you mean engine?" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "config_file", "settings"),
    [
        (["g.cfg"], "g.cfg", ()),
        (["-c", "g.cfg"], "g.cfg", ()),
        (["g.cfg", "-cp", "a=1", "-n"], "g.cfg", ("a=1",)),
        (["-f", "g.cfg", "a=1"], "g.cfg", ("a=1",)),
        (["-cfg.cfg", "a=1"], "g.cfg", ("a=1",)),
        (["--defconfig=g.cfg"], "g.cfg", ()),
        (["--def", "g.cfg", "--dry"], "g.cfg", ()),
        (["h.cfg", "-f", "g.cfg"], "g.cfg", ()),
        (["a=1", "g.cfg", "b=2"], "g.cfg", ("a=1", "b=2")),
        (["--", "g.cfg", "a=-1"], "g.cfg", ("a=-1",)),
    ],
)
def test_arguments_are_read_as_xl_reads_them(arguments: list[str], config_file: str, settings: tuple[str]) -> None:
    assert read_arguments(arguments) == guestconfig.Source(config_file, settings)


@pytest.mark.parametrize(
    "arguments",
    [["-z", "g.cfg"], ["g.cfg", "-f"], ["--new", "g.cfg"], ["-f", "a", "b"], ["a=1", "b", "c"], ["g=.cfg"], []],
)
def test_arguments_that_xl_create_does_not_have_are_refused(arguments: list[str]) -> None:
    """They may mean another configuration file to a newer xl."""
    with pytest.raises(UsageError):
        read_arguments(arguments)


def test_usage_is_status_2(host: Host) -> None:
    assert host.run("create").returncode == 2
    assert host.run("create", "-z").returncode == 2
    assert host.run("rewrite").returncode == 2
    assert host.run("nonsense").returncode == 2
    assert host.xl() is None


def test_help_for_create_is_that_of_xl(host: Host) -> None:
    assert host.run("create", "-h").returncode == 7
    assert host.xl() == ["create", "-h"]


@given(
    st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=40), max_size=4)
)
def test_quoted_text_is_read_back_by_libxlutil(texts: list[str]) -> None:
    data = "disk=[" + ",".join(map(guestconfig.quote, texts)) + "]\n"
    assert libxl.read_disks("test", data.encode()) == texts


def test_rewrite_shows_a_configuration_that_xl_takes(host: Host) -> None:
    config = host.write(f"disk = ['tap2:vhd:{host.image},xvda,w', '/x,raw,xvdb']")
    result = host.run("rewrite", config)
    assert result.returncode == 0
    form = f"format=raw,script=block-xenblk,vdev=xvda,access=w,target=vhd:{host.image}"
    assert libxl.read_disks("test", result.stdout.encode()) == [form, "/x,raw,xvdb"]


def test_rewrite_as_json(host: Host) -> None:
    config = host.write(f"disk = ['tap2:vhd:{host.image},xvda,w', '/x,raw,xvdb']")
    tap, other = json.loads(host.run("rewrite", "--json", config).stdout)
    assert tap == {
        "vdev": "xvda",
        "driver": "vhd",
        "path": host.image,
        "spec": f"tap2:vhd:{host.image},xvda,w",
        "rewritten": f"format=raw,script=block-xenblk,vdev=xvda,access=w,target=vhd:{host.image}",
    }
    assert other == {"vdev": "xvdb", "driver": None, "path": None, "spec": "/x,raw,xvdb", "rewritten": "/x,raw,xvdb"}


def test_rewrite_says_what_libxlutil_has_against_a_configuration(host: Host) -> None:
    config = host.write("disk = ['nonsense']")
    result = host.run("rewrite", config)
    assert result.returncode == 1
    assert result.stderr.startswith(f"xenblk: {config}: not understood by libxl: ")


def test_rewrite_without_a_file_asks_for_just_that(host: Host) -> None:
    result = host.run("rewrite")
    assert result.returncode == 2
    assert result.stderr.endswith("the following arguments are required: config_file\n")
