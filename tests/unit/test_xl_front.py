# SPDX-License-Identifier: LGPL-2.1-only
"""The front of xl, with programs in the places of Xen's xl and of xenblk that record what they are given."""

import contextlib
import fcntl
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib import front, programs
from tests.lib.front import Front

pytestmark = pytest.mark.unit

TAP = "disk = ['tap2:vhd:/a.vhd,xvda,w']\n"
PLAIN = "disk = ['phy:/dev/vg/lv,xvda,w']\n"
SPEC = "tap2:vhd:/a.vhd,xvda,w"

# Of xl 4.17; then what 4.20 has besides
COMMANDS = """create config-update list destroy shutdown reboot pci-attach pci-detach pci-list pci-assignable-add
pci-assignable-remove pci-assignable-list pause unpause console vncviewer save migrate restore migrate-receive dump-core
cd-insert cd-eject mem-max mem-set button-press vcpu-list vcpu-pin vcpu-set vm-list info sharing sched-credit
sched-credit2 sched-rtds domid domname rename trigger sysrq debug-keys set-parameters dmesg top network-attach
network-list network-detach channel-list block-attach block-list block-detach vtpm-attach vtpm-list vtpm-detach
vkb-attach vkb-list vkb-detach vdispl-attach vdispl-list vdispl-detach vsnd-attach vsnd-list vsnd-detach uptime claims
cpupool-create cpupool-list cpupool-destroy cpupool-rename cpupool-cpu-add cpupool-cpu-remove cpupool-migrate
cpupool-numa-split getenforce setenforce loadpolicy remus devd psr-hwinfo psr-cmt-attach psr-cmt-detach psr-cmt-show
psr-cat-set psr-cat-show psr-mba-set psr-mba-show usbctrl-attach usbctrl-detach usbdev-attach usbdev-detach usb-list
qemu-monitor-command""".split()
NEWER = ["suspend", "resume", "dt-overlay"]
OURS = {"create", "config-update", "block-attach", "restore", "save", "migrate"}


@pytest.fixture
def xl(tmp_path: Path) -> Front:
    return front.install(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["list"],
        ["-vvv", "list", "-l", ""],
        ["console", "a b", "c\nd", "", "\t", "'\"\\$*"],
        ["domid", "\udcff\udc80"],
        ["create", "no-such.cfg", "-c", "name='x y'"],
        ["create", "-c", "no-such.cfg", "--", "-p", "x=1"],
        ["restore", "-p", "no-such.cfg", "no-such.save"],
        ["migrate", "-s", "", "dom", "exec xl migrate-receive"],
        ["no-such-command", SPEC],
        ["-Z", "list"],
        ["help", "create"],
        ["set-parameters", "x" * 100000],
    ],
)
def test_xl_gets_the_arguments_as_they_are(xl: Front, arguments: list[str]) -> None:
    result = xl.run(*arguments)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert xl.given("xl") == arguments
    assert xl.given("xenblk") is None


@pytest.mark.parametrize("status", [0, 1, 2, 7, 127, 255])
def test_the_exit_status_is_that_of_xl(xl: Front, status: int) -> None:
    assert xl.run("list", FAKE=f"exit {status}").returncode == status
    assert xl.run("block-attach", "d", SPEC, FAKE=f"exit {status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSEGV])
def test_the_caller_sees_xl_die_by_a_signal(xl: Front, number: signal.Signals) -> None:
    assert xl.run("list", FAKE=f"kill -{int(number)} $$; sleep 60").returncode == -number


def test_xl_is_the_process_that_was_started(xl: Front) -> None:
    with subprocess.Popen(
        [xl.xl, "list"],
        env=xl.environment(FAKE="cat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        output, _ = process.communicate(b"for xl\n", timeout=60)
    assert output == b"for xl\n"
    assert int((xl.root / "xl.pid").read_text()) == process.pid


def test_xl_has_the_terminal_and_its_ctrl_c(xl: Front) -> None:
    environment = xl.environment(FAKE="tty; echo ready >/dev/tty; exec sleep 300")
    pid, terminal = pty.fork()
    if not pid:
        os.execve(xl.xl, [xl.xl, "console", "d"], environment)
    text = read_until(terminal, b"ready\r\n")
    assert text.startswith(b"/dev/pts/")
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGINT


def read_until(terminal: int, end: bytes) -> bytes:
    """What a program on a terminal says, to these words. Raises OSError if it ends before."""
    text = b""
    while end not in text:
        text += os.read(terminal, 1024)
    return text


def test_xl_has_the_environment_of_the_caller(xl: Front) -> None:
    given = xl.environment(ODD="a\nb", EMPTY="", LC_ALL="C") | {"FAKE": "exit 0"}
    xl.run("list", ODD="a\nb", EMPTY="", LC_ALL="C")
    seen = (xl.root / "xl.environ").read_bytes().split(b"\0")[:-1]
    assert sorted(seen) == sorted(os.fsencode(f"{key}={value}") for key, value in given.items())


def lookup(word: str, commands: list[str]) -> str | None:
    """The command that xl takes a word for: a whole name, or the only one that begins so."""
    found = [command for command in commands if command.startswith(word)]
    return word if word in found else found[0] if len(found) == 1 else None


def test_a_word_means_the_command_that_it_means_to_xl(tmp_path: Path) -> None:
    xl = front.install(tmp_path, "release")
    initials = {command[0] for command in OURS}
    words = {command[:n] for command in COMMANDS + NEWER for n in range(1, len(command) + 1) if command[0] in initials}
    for word in sorted(words):
        meant = {lookup(word, COMMANDS), lookup(word, COMMANDS + NEWER)} - {None}
        if meant:
            xl.run(word, "d", SPEC)
            assert (xl.given("xenblk") is not None) == (meant <= OURS), word
            assert (xl.given("xl") is not None) == (not meant & OURS), word


def arguments_for(xl: Front, template: str) -> list[str]:
    """The words of a template, in which T is a configuration with a tap disk, P one without, B one with a backslash."""
    names = {
        "T": xl.write("tap.cfg", TAP),
        "P": xl.write("plain.cfg", PLAIN),
        "B": xl.write("escaped.cfg", 'disk = ["t\\x61p2:vhd:/a.vhd,xvda,w"]\n'),
    }
    words = []
    for word in template.split():
        last = names.get(word[-1])
        words.append(word[:-1] + last if last and (len(word) == 1 or word[-2] in "fC=") else word)
    return words


@pytest.mark.parametrize(
    "template",
    [
        "create T",
        "create B",
        "cr -c T",
        "create P -f T",
        "create -fT",
        "create -qfT",
        "create -cf T x=1",
        "create --defconfig=T",
        "create --defconfig T",
        "create --def=T",
        "create x=1 T",
        "create -- T",
        "create --a-newer-option -Z T",
        "create P disk=['tap:/a,xvda']",
        "create P disk=['tapdisk:/a,xvda']",
        "create P disk=['t\\x61p:/a,xvda']",
        "-v create T",
        "-vftTN cr T",
        "-v -N -- create T",
        "config-update dom T",
        "conf dom -d T",
        "config-update dom -f T",
        "config-update dom --defconfig=T",
        "config-update dom P disk=['tap2:/a,xvda']",
        "block-attach dom tap2:vhd:/a.vhd,xvda,w",
        "block-a dom vdev=xvda tap:/a",
        "block-attach 0 tapdisk:/a xvda w",
        "block-attach 0 backendtype=tap,vdev=xvda,target=/a",
        "block-attach 0 vhd:/a,xvda,w",
        "block-attach 0 /a,vhd,xvda,w",
        "block-attach 0 /a vhd xvda w",
        "block-attach 0 /a vhd,xvda,w",
        "block-attach 0 vdev=xvda,format=vhd,target=/a",
        "block-attach 0 vdev=xvda,script=block-xenblk,target=aio:/a",
        "create P disk=['/a,vhd']",
        "restore T saved",
        "restore -p T -e saved",
        "rest -- T saved",
        "save dom saved T",
        "sa -c dom saved T",
        "migrate -C T dom host",
        "migrate -eC T dom host",
        "migrate -CT -s ssh dom host",
        "migrate dom host -C T",
    ],
)
def test_a_call_that_may_bring_a_tap_disk_goes_to_xenblk(xl: Front, template: str) -> None:
    arguments = arguments_for(xl, template)
    assert xl.run(*arguments).returncode == 0
    assert xl.given("xenblk") == ["xl", *arguments]
    assert xl.given("xl") is None


def test_blanks_before_the_word_vhd_hide_nothing_from_xenblk(xl: Front) -> None:
    """xl passes over them."""
    assert xl.run("block-attach", "0", "/a", " vhd", "xvda", "w").returncode == 0
    assert xl.given("xl") is None


@pytest.mark.parametrize(
    "template",
    [
        "create P",
        "create -c P x=1",
        "create -f P",
        "create --defconfig=P",
        "create",
        "create -f",
        "create .",
        "create /dev/null",
        "create disk=['phy:/a,xvda']",
        "config-update dom P",
        "config-update",
        "config-update T",
        "block-attach dom phy:/dev/a,xvda,w",
        "block-attach dom vdev=xvda,target=/tap/vhd.img",
        "block-attach dom vdev=xvda,target=/vhd",
        "block-attach dom /a.vhd,raw,xvda,w",
        "block-attach dom /a,vhdx,xvda,w",
        "block-detach dom tap2:",
        "restore T",
        "restore -p T",
        "restore P T",
        "restore P P T",
        "restore T P P",
        "save dom T",
        "save T T",
        "migrate T host",
        "migrate -s T dom host",
        "migrate -C P dom host",
        "list T",
        "destroy T",
    ],
)
def test_every_other_call_goes_to_xl(xl: Front, template: str) -> None:
    arguments = arguments_for(xl, template)
    assert xl.run(*arguments).returncode == 0
    assert xl.given("xl") == arguments
    assert xl.given("xenblk") is None


@pytest.mark.parametrize(
    ("text", "to"),
    [
        ("# disk = ['tap2:vhd:/a.vhd,xvda,w']\n", "xl"),
        (" \t# a backslash: \\\n#tap:", "xl"),
        ("#\n\ndisk = [\n# 'tap2:/a,xvda',\n'phy:/b,xvda' ]\n", "xl"),
        ("# one\ndisk = ['tap2:/a,xvda']", "xenblk"),
        ("disk = ['phy:/a#1,xvda', # one\n 'tap2:/b#2,xvdb']\n", "xenblk"),
        ("memory = 64 # tap2:/a,xvda\n", "xenblk"),
    ],
)
def test_a_line_that_is_a_comment_does_not_count(xl: Front, text: str, to: str) -> None:
    """What is behind one on its line does, in doubt."""
    call = ["create", xl.write("g.cfg", text)]
    xl.run(*call)
    assert xl.given(to) == (call if to == "xl" else ["xl", *call])


def test_posixly_correct_ends_the_options_as_in_xl(xl: Front) -> None:
    arguments = arguments_for(xl, "create P -fT")
    xl.run(*arguments, POSIXLY_CORRECT="1")
    assert xl.given("xenblk") == ["xl", *arguments]
    arguments = arguments_for(xl, "restore P -e T")
    xl.run(*arguments, POSIXLY_CORRECT="1")
    assert xl.given("xl") == arguments


def test_a_saved_guest_is_not_read_but_a_long_configuration_is_left_to_xenblk(xl: Front) -> None:
    long = xl.write("long", "#" * (1 << 20) + "\n")
    xl.run("restore", long)
    assert xl.given("xl") == ["restore", long]
    xl.run("create", long)
    assert xl.given("xenblk") == ["xl", "create", long]


def test_a_pipe_is_not_emptied(xl: Front) -> None:
    os.mkfifo(xl.root / "pipe")
    pipe = os.open(xl.root / "pipe", os.O_RDWR)
    os.write(pipe, TAP.encode())
    xl.run("create", "pipe")
    assert xl.given("xl") == ["create", "pipe"]
    assert os.read(pipe, 1024) == TAP.encode()
    os.close(pipe)


def test_what_comes_back_from_xenblk_goes_to_xl(xl: Front) -> None:
    command = ["bash", "-c", 'XENBLK_REWRITTEN=$$ exec "$0" "$@"', xl.xl, "block-attach", "d", SPEC]
    subprocess.run(command, env=xl.environment(), timeout=60, check=True)
    assert xl.given("xl") == ["block-attach", "d", SPEC]
    assert b"XENBLK_REWRITTEN" not in (xl.root / "xl.environ").read_bytes()


def test_what_xenblk_said_of_another_process_does_not_count(xl: Front) -> None:
    xl.run("block-attach", "d", SPEC, XENBLK_REWRITTEN="1")
    assert xl.given("xl") is None
    assert xl.given("xenblk") == ["xl", "block-attach", "d", SPEC]
    assert b"XENBLK_REWRITTEN" not in (xl.root / "xenblk.environ").read_bytes()


def test_the_xl_that_was_set_aside_is_found_beside_it(xl: Front) -> None:
    environment = {key: value for key, value in xl.environment().items() if key != "XENBLK_REAL_XL"}
    (xl.root / "link").symlink_to(xl.xl)
    subprocess.run([xl.root / "link", "--set-aside"], env=environment, timeout=60, check=True)
    assert xl.given("xl") == ["--set-aside"]


def same_file(xl: Front) -> None:
    os.replace(xl.xl, xl.root / "libexec/xl")
    os.link(xl.root / "libexec/xl", xl.xl)


def link_to_itself(xl: Front) -> None:
    (xl.root / "libexec/xl").unlink()
    (xl.root / "libexec/xl").symlink_to("../sbin/xl")


def missing(xl: Front) -> None:
    (xl.root / "libexec/xl").unlink()


def not_executable(xl: Front) -> None:
    (xl.root / "libexec/xl").unlink()
    (xl.root / "libexec/xl").mkdir()


@pytest.mark.parametrize("damage", [same_file, link_to_itself, missing])
def test_without_another_xl_it_says_so_and_does_not_call_itself(xl: Front, damage: Callable[[Front], None]) -> None:
    damage(xl)
    result = xl.run("list")
    assert (result.returncode, result.stdout) == (127, "")
    assert result.stderr == "xl: Xen's own xl isn't there; install Xen's tools (on Debian xen-utils-common)\n"


def test_an_xl_that_cannot_be_started_is_named(xl: Front) -> None:
    not_executable(xl)
    result = xl.run("list")
    assert (result.returncode, result.stderr) == (127, f"xl: {xl.root}/libexec/xl: Permission denied\n")


def test_without_xenblk_a_tap_disk_does_not_reach_xl(xl: Front) -> None:
    (xl.root / "sbin/xenblk").unlink()
    result = xl.run("block-attach", "d", SPEC)
    assert (result.returncode, xl.given("xl")) == (127, None)
    assert result.stderr == f"xl: {xl.root}/sbin/xenblk: No such file or directory; install xenblk again\n"


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    """The least that the command takes of the processor, of 50 runs: what else the machine does hardly counts."""
    least = 1e9
    for _ in range(50):
        pid = os.posix_spawn(command[0], command, environment)
        _, status, usage = os.wait4(pid, 0)
        assert status == 0
        least = min(least, usage.ru_utime + usage.ru_stime)
    return least


def test_it_costs_less_than_5_ms(tmp_path: Path) -> None:
    xl = front.install(tmp_path, "release")
    real = tmp_path / "libexec/xl"
    shutil.copy("/bin/true", real)
    config = xl.write("plain.cfg", PLAIN + "# a comment\n" * 200)
    alone = cpu_seconds([str(real), "create", config], xl.environment())
    for arguments in (["list"], ["create", config]):
        assert cpu_seconds([xl.xl, *arguments], xl.environment()) - alone < 0.005


@contextlib.contextmanager
def locked(image: Path) -> Iterator[None]:
    """A tapdisk has the image."""
    image.touch()
    command = [str(programs.program("tests/tool-lock")), "reader", str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == b"locked\n"
        yield
        process.stdin.close()


DISKS = ["file:{},xvda,w", "format=raw,vdev=xvda,target={}", "{},raw,xvda", "format=qcow2,vdev=hda,access=w,target={}"]


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("name", ["a.img", "a b.img", "a,b.img", "alias.img", 'a"b.img', "bob's.img"])
def test_who_would_not_ask_for_the_image_lock_goes_to_xenblk(xl: Front, disk: str, name: str) -> None:
    """QEMU as libxl runs it and losetup don't; by whatever name the image goes."""
    image = xl.root / name
    spec = disk.format(image)
    quote = '"' if "'" in name else "'"
    call = ["create", xl.write("g.cfg", f"memory = 64\ndisk = [ {quote}{spec}{quote} ]\n")]
    if name == "alias.img":
        (xl.root / "real.img").touch()
        image.symlink_to(xl.root / "real.img")
    elif "," in name and not disk.endswith("target={}"):
        image = xl.root / name.partition(",")[0]
    with locked(image):
        for words in (call, ["block-attach", "guest", spec]):
            xl.run(*words)
            assert xl.given("xenblk") == ["xl", *words]
    xl.run(*call)
    assert xl.given("xl") == call


def test_a_comma_behind_a_path_does_not_count(xl: Front) -> None:
    """xl leaves one out at the end of a target."""
    words = ["block-attach", "guest", f"format=raw,vdev=xvda,target={xl.root}/a,b.img,"]
    with locked(xl.root / "a,b.img"):
        xl.run(*words)
    assert xl.given("xenblk") == ["xl", *words]


def test_a_configuration_with_more_words_than_can_be_looked_for_is_xenblks(xl: Front) -> None:
    call = ["create", xl.write("g.cfg", "name = '" + "a,b c" * 9000 + "'\n")]
    xl.run(*call)
    assert xl.given("xenblk") == ["xl", *call]


def test_the_device_of_a_lock_need_not_be_the_files(xl: Front) -> None:
    """btrfs: a subvolume has one of its own for stat, and the file system's in /proc/locks. xenblk asks the lock itself."""
    (xl.root / "a.img").touch()
    call = ["create", xl.write("g.cfg", f"disk = [ 'file:{xl.root}/a.img,xvda,w' ]\n")]
    inode = (xl.root / "a.img").stat().st_ino
    for number, name in ((inode, "xenblk"), (inode + 1, "xl")):
        locks = xl.write("locks", f"1: OFDLCK ADVISORY  READ  -1 fe:ff:{number} 300 300\n")
        xl.run(*call, XENBLK_LOCKS=locks)
        assert xl.given(name) is not None


@pytest.mark.parametrize("held", ["300 300", "201 201", "300 301", "203 203", "1099511627776 1099511627776", "1099511627999 EOF", "0 EOF"])
def test_a_parent_and_what_a_coalesce_writes_are_locked_too(xl: Front, held: str) -> None:
    """A parent's reader holds its child's byte; what one holder has side by side the kernel tells as one."""
    (xl.root / "a.img").touch()
    call = ["create", xl.write("g.cfg", f"disk = [ 'file:{xl.root}/a.img,xvda,w' ]\n")]
    locks = xl.write("locks", f"1: OFDLCK ADVISORY  READ  -1 fe:ff:{(xl.root / 'a.img').stat().st_ino} {held}\n")
    xl.run(*call, XENBLK_LOCKS=locks)
    assert xl.given("xenblk") == ["xl", *call]


@pytest.mark.parametrize(
    ("held", "to"),
    [
        ("POSIX  ADVISORY  WRITE 812 {} 200 200", "xenblk"),
        ("POSIX  ADVISORY  READ  812 {} 300 301", "xenblk"),
        ("DELEG  ACTIVE    WRITE 812 {} 0 EOF", "xenblk"),
        ("LEASE  ACTIVE    READ  812 {} 0 EOF", "xl"),
        ("POSIX  ADVISORY  WRITE 812 {} 0 EOF", "xl"),
        ("POSIX  ADVISORY  WRITE 812 {} 100 199", "xl"),
        ("FLOCK  ADVISORY  WRITE 812 {} 0 EOF", "xl"),
    ],
)
def test_a_lock_of_another_host_that_has_the_image_by_nfs_counts(xl: Front, held: str, to: str) -> None:
    """Here, where the image lies, the kernel's NFS server has it, as POSIX."""
    (xl.root / "a.img").touch()
    call = ["create", xl.write("g.cfg", f"disk = [ 'file:{xl.root}/a.img,xvda,w' ]\n")]
    line = held.format(f"fe:ff:{(xl.root / 'a.img').stat().st_ino}")
    xl.run(*call, XENBLK_LOCKS=xl.write("locks", f"1: {line}\n"))
    assert xl.given(to) is not None


def test_more_locks_than_can_be_kept_are_none_overlooked(xl: Front) -> None:
    call = ["create", xl.write("g.cfg", f"disk = [ 'file:{xl.root}/a.img,xvda,w' ]\n")]
    lines = (f"{n}: OFDLCK ADVISORY  READ  -1 fe:ff:{10**9 + n} 300 300\n" for n in range(4100))
    xl.run(*call, XENBLK_LOCKS=xl.write("locks", "".join(lines)))
    assert xl.given("xenblk") == ["xl", *call]


@pytest.mark.parametrize("disk", DISKS)
def test_a_path_may_begin_here(xl: Front, disk: str) -> None:
    spec = disk.format("a.img")
    with locked(xl.root / "a.img"):
        for words in (["create", xl.write("g.cfg", f"disk = [\n'{spec}' ]\n")], ["block-attach", "guest", spec]):
            xl.run(*words)
            assert xl.given("xenblk") == ["xl", *words]


def test_other_locks_and_other_files_send_nothing_to_xenblk(xl: Front) -> None:
    call = ["create", xl.write("g.cfg", f"disk = [ 'file:{xl.root}/b.img,xvda,w' ]\n")]
    (xl.root / "b.img").touch()
    with locked(xl.root / "a.img"), open(xl.root / "b.img", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        xl.run(*call)
    assert xl.given("xl") == call and xl.given("xenblk") is None
