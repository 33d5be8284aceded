# SPDX-License-Identifier: LGPL-2.1-only
"""block-xenblk between a xenstored in memory and a tap-ctl that only keeps books."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.lib import bridge
from tests.lib.blockscript import TAP_CTL, VBD, Dom0
from tests.lib.waiting import wait_for

pytestmark = pytest.mark.unit


def test_add_serves_the_image_and_names_the_device(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 0
    assert dom0.created() == ["-a", f"vhd:{image}"]
    assert dom0.key("physical-device") == "1:3"
    assert dom0.key("physical-device-path") == str(dom0.directory / "fake" / "tapdev0")
    assert dom0.key("hotplug-status") == "connected"
    assert dom0.disks() == [f"pid={dom0.key('tapdisk-pid')} minor={dom0.key('tapdisk-minor')} state=0 args=vhd:{image}"]


def test_keys_are_written_in_the_order_that_their_readers_need(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    before = len(dom0.store.log)
    assert dom0.run("add") == 0
    order = [path.rpartition("/")[2] for path, _ in dom0.store.log[before:]]
    assert order == ["tapdisk-pid", "tapdisk-minor", "physical-device-path", "physical-device", "hotplug-status"]


@pytest.mark.parametrize("name", ["a b.vhd", "a:b.vhd", "a,b.vhd", "ü ' \" $x.vhd", "*", "back\\slash"])
def test_add_takes_any_file_name(dom0: Dom0, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    dom0.vbd(f"aio:{tmp_path}/{name}")
    assert dom0.run("add") == 0
    assert dom0.created() == ["-a", f"aio:{tmp_path}/{name}"]
    assert dom0.run("remove") == 0
    assert dom0.disks() == []


def test_a_script_without_its_program_says_so(dom0: Dom0, image: Path) -> None:
    """To xl, which knows of a program that can't be run only that the script failed."""
    text = re.sub("^VBD=.*$", f"VBD={dom0.directory}/xenblk-vbd", dom0.script.read_text(), flags=re.MULTILINE)
    dom0.script.write_text(text)
    (dom0.directory / "bin/xenstore-write").symlink_to(bridge.xen_files() / "usr/bin/xenstore-write")
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 1
    assert dom0.key("hotplug-error") == f"{dom0.directory}/xenblk-vbd is missing: install xenblk completely"
    assert dom0.key("hotplug-status") == "error"
    assert dom0.run("remove") == 1


def test_mode_r_is_read_only(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}", mode="r")
    assert dom0.run("add") == 0
    assert dom0.created() == ["-a", f"vhd:{image}", "-R"]


def test_tapdisk_does_not_inherit_the_lock(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 0
    open_files = [os.readlink(fd) for fd in Path(f"/proc/{dom0.key('tapdisk-pid')}/fd").iterdir()]
    assert str(image) in open_files
    assert not [file for file in open_files if file.startswith(str(dom0.directory / "lock"))]


def test_add_twice_serves_the_image_once(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 0
    dom0.store.write(f"{VBD}/state", "4")
    assert dom0.run("add") == 0
    assert len(dom0.disks()) == 1
    assert dom0.key("hotplug-status") == "connected"


def test_remove_ends_the_service_and_leaves_no_key_or_lock(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    dom0.run("add")
    assert dom0.run("remove") == 0
    assert dom0.disks() == []
    assert dom0.key("tapdisk-pid") is None
    assert dom0.key("tapdisk-minor") is None
    assert list((dom0.directory / "lock").iterdir()) == []


def test_remove_without_add_succeeds(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("remove") == 0
    assert dom0.calls() == []


def test_remove_twice_touches_nobody_else(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    dom0.run("add")
    dom0.run("remove")
    calls = len(dom0.calls())
    assert dom0.run("remove") == 0
    assert len(dom0.calls()) == calls


def test_remove_without_a_node_succeeds(dom0: Dom0) -> None:
    assert dom0.run("remove") == 0


def test_add_after_remove_serves_again(dom0: Dom0, image: Path) -> None:
    """As when pygrub attaches the disk to dom0 first."""
    for _ in range(2):
        dom0.vbd(f"vhd:{image}")
        assert dom0.run("add") == 0
        assert dom0.run("remove") == 0
    assert [call[0] for call in dom0.calls()].count("create") == 2


def test_remove_waits_while_blkback_has_the_device(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    dom0.run("add")
    dom0.set("busy", "\n\n\n")
    assert dom0.run("remove") == 0
    assert dom0.disks() == []
    assert [call[0] for call in dom0.calls()].count("destroy") == 4


def test_remove_gives_up_and_leaves_a_busy_device_visible(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    dom0.run("add")
    dom0.set("busy", "\n" * 1000)
    start = time.monotonic()
    assert dom0.run("remove") != 0
    assert time.monotonic() - start < 38, "libxl gives a script 40 s"
    assert len(dom0.disks()) == 1
    assert "Device or resource busy" in str(dom0.key("hotplug-error"))
    assert "Device or resource busy" in dom0.log()


def test_remove_frees_the_device_of_a_tapdisk_that_died(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    dom0.run("add")
    os.kill(int(str(dom0.key("tapdisk-pid"))), signal.SIGKILL)
    dom0.set("disks", f"pid=-1 minor={dom0.key('tapdisk-minor')} state=0 args=\n")
    assert dom0.run("remove") == 0
    assert dom0.calls()[-1] == ["free", "-m", "0"]
    assert dom0.disks() == []


def test_remove_leaves_a_minor_that_another_tapdisk_took_over(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    dom0.run("add")
    subprocess.run(["kill", str(dom0.key("tapdisk-pid"))], check=True)
    other = f"pid={2**22} minor=0 state=0 args=vhd:/other"
    dom0.set("disks", other + "\n")
    assert dom0.run("remove") == 0
    assert dom0.disks() == [other]
    dom0.set("disks", "")


@pytest.mark.parametrize("other", ["another image", "the same image, of another guest", "the same image, being created"])
def test_remove_leaves_a_minor_that_is_another_disks_and_has_no_tapdisk_now(dom0: Dom0, image: Path, other: str) -> None:
    """Ours was ended by hand, and the tapdisk of who was given its minor is dead: that disk waits for the next one."""
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 0
    minor = dom0.key("tapdisk-minor")
    os.kill(int(str(dom0.key("tapdisk-pid"))), signal.SIGKILL)
    dom0.set("disks", f"pid=-1 minor={minor} state=0 args=\n")
    whose = {
        "another image": f"args=vhd:{image}.other",
        "the same image, of another guest": f"args=vhd:{image}\nfor=backend/vbd/6/51712",
        "the same image, being created": f"args=vhd:{image}\nowner={os.getpid()}",
    }[other]
    dom0.set(f"disk.{minor}", f"version=1\npid=2000000000\n{whose}\n")
    before = dom0.calls()
    assert dom0.run("remove") == 0
    assert dom0.calls() == before
    assert dom0.key("tapdisk-pid") is None


def test_remove_ends_the_tapdisk_that_has_taken_over(dom0: Dom0, image: Path) -> None:
    """tap-ctl(8) says how, if one was killed; the guest's node still has the first one's pid."""
    dom0.vbd(f"vhd:{image}")
    dom0.run("add")
    subprocess.run(["kill", "-9", str(dom0.key("tapdisk-pid"))], check=True)
    with subprocess.Popen(["sleep", "100"]) as other:
        dom0.set("disks", f"pid={other.pid} minor=0 state=0 args=vhd:{image}\n")
        assert dom0.run("remove") == 0
        assert other.wait(60) < 0
    assert dom0.disks() == []


def test_the_reason_of_tapdisk_reaches_hotplug_error(dom0: Dom0, image: Path) -> None:
    dom0.set("create-fails", f"tap-ctl: vhd:{image}: header checksum is 0, not 0xfffff7a3; restore it from a backup\n")
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") != 0
    assert dom0.key("hotplug-error") == f"vhd:{image}: header checksum is 0, not 0xfffff7a3; restore it from a backup"
    assert dom0.key("hotplug-status") == "error"
    assert dom0.key("physical-device") is None
    assert list((dom0.directory / "lock").iterdir()) == []


def test_a_warning_of_tap_ctl_is_not_taken_for_the_device(dom0: Dom0, image: Path) -> None:
    dom0.set("warn", "tap-ctl: the kernel forbids io_uring: posix is used\n")
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 0
    assert dom0.key("physical-device-path") == str(dom0.directory / "fake" / "tapdev0")


def test_a_missing_tap_ctl_is_named(dom0: Dom0, image: Path) -> None:
    (dom0.directory / "bin" / "tap-ctl").unlink()
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") != 0
    assert "tap-ctl" in str(dom0.key("hotplug-error"))


@pytest.mark.parametrize("params", ["/srv/a.vhd", "qcow2:/srv/a", "vhd:srv/a.vhd", "vhd:", "tap2:vhd:/srv/a.vhd", ""])
def test_a_target_that_is_not_ours_is_refused(dom0: Dom0, params: str) -> None:
    dom0.vbd(params)
    assert dom0.run("add") != 0
    assert f"target {params}: not a disk that tapdisk serves" in str(dom0.key("hotplug-error"))
    assert dom0.calls() == []


def test_a_vbd_that_was_removed_meanwhile_is_not_served(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    dom0.store.write(f"{VBD}/state", "6")
    assert dom0.run("add") != 0
    assert dom0.calls() == []
    assert dom0.key("hotplug-status") == "error"


def test_remove_during_add_waits_for_it_and_undoes_it(dom0: Dom0, image: Path) -> None:
    dom0.set("create-delay", "1")
    dom0.vbd(f"vhd:{image}")
    with dom0.start("add") as add:
        wait_for(dom0.calls, "a call of tap-ctl", 20)
        assert dom0.run("remove") == 0
        assert add.wait(timeout=20) == 0
    assert dom0.disks() == []


def test_a_slow_image_holds_up_no_other_disk(dom0: Dom0, image: Path) -> None:
    dom0.set("create-hangs", f"vhd:{image}")
    dom0.vbd(f"vhd:{image}")
    other = "backend/vbd/6/51712"
    (dom0.directory / "b.vhd").write_bytes(b"")
    dom0.vbd(f"vhd:{dom0.directory}/b.vhd", other)
    with dom0.start("add") as slow:
        try:
            wait_for(dom0.calls, "a call of tap-ctl", 20)
            assert dom0.run("add", other) == 0
            assert slow.poll() is None
        finally:
            (dom0.directory / "fake" / "create-hangs").unlink()
        assert slow.wait(timeout=30) == 0


def test_nothing_is_left_when_the_device_has_no_node(dom0: Dom0, image: Path) -> None:
    """write_dev fails after the image was opened."""
    dom0.vbd(f"vhd:{image}")
    text = TAP_CTL.replace("ln -s", ": ln -s").replace('rm "tapdev', ': rm "tapdev')
    (dom0.directory / "bin" / "tap-ctl").write_text(text)
    assert dom0.run("add") != 0
    assert dom0.disks() == []
    assert dom0.key("hotplug-status") == "error"


def qdisk(dom0: Dom0, params: str, mode: str) -> None:
    dom0.store.write("backend/qdisk/9/51728/params", params)
    dom0.store.write("backend/qdisk/9/51728/mode", mode)
    dom0.store.write("backend/qdisk/9/51728/dev", "xvdb")
    dom0.store.write("/local/domain/9/name", "other")


def loop(dom0: Dom0, path: Path, read_only: bool) -> None:
    node = dom0.directory / "sys" / "block" / "loop7"
    (node / "loop").mkdir(parents=True)
    (node / "loop" / "backing_file").write_text(f"{path}\n", encoding="utf-8")
    (node / "ro").write_text(f"{int(read_only)}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("ours", "theirs", "shared"), [("w", "w", False), ("w", "r", False), ("r", "w", False), ("r", "r", True)]
)
@pytest.mark.parametrize("user", ["qdisk", "loop"])
def test_an_image_has_one_writer_or_only_readers(
    dom0: Dom0, image: Path, tmp_path: Path, user: str, ours: str, theirs: str, shared: bool
) -> None:
    alias = tmp_path / "ä b"
    os.link(image, alias)
    if user == "qdisk":
        qdisk(dom0, f"vhd:{alias}", theirs)
    else:
        loop(dom0, alias, theirs == "r")
    dom0.vbd(f"vhd:{image}", mode=ours)
    assert (dom0.run("add") == 0) == shared
    if not shared:
        name = "guest other (xvdb)" if user == "qdisk" else "/dev/loop7"
        assert dom0.key("hotplug-error") == f"vhd:{image}: in use by {name}; end that use first"
        assert dom0.key("hotplug-status") == "busy"
        assert dom0.calls() == []


def test_a_path_of_qemu_begins_where_it_runs(dom0: Dom0, image: Path) -> None:
    """libxl writes it as the configuration has it, and that QEMU was started where xl was."""
    qdisk(dom0, f"vhd:{image.name}", "w")
    with subprocess.Popen(["sleep", "100"], cwd=image.parent) as qemu:
        dom0.store.write("/local/domain/9/image/device-model-pid", str(qemu.pid))
        dom0.vbd(f"vhd:{image}")
        assert dom0.run("add") != 0
        qemu.kill()
    assert dom0.key("hotplug-error") == f"vhd:{image}: in use by guest other (xvdb); end that use first"


def test_what_happens_to_the_node_while_the_image_is_opened_is_not_overwritten(dom0: Dom0, image: Path) -> None:
    dom0.set("create-delay", "1")
    dom0.vbd(f"vhd:{image}")
    with dom0.start("add") as add:
        wait_for(dom0.calls, "tap-ctl runs", 20)
        dom0.store.write(f"{VBD}/state", "6")
        assert add.wait(timeout=20) != 0
    assert dom0.disks() == [] and dom0.key("physical-device") is None and dom0.key("state") == "6"


def test_a_node_that_is_gone_is_not_made_again(dom0: Dom0) -> None:
    assert dom0.run("add") != 0
    assert dom0.key("hotplug-error") is None and "state is none" in dom0.log()


def test_another_tapdisk_that_hangs_is_no_matter_of_a_remove(dom0: Dom0, image: Path) -> None:
    """tap-ctl list says so first. Ours was ended by hand."""
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 0
    os.kill(int(dom0.key("tapdisk-pid") or 0), signal.SIGKILL)
    dom0.set("disks", "")
    complaint = 'list) echo "tap-ctl: tapdisk 77: no answer within 5 s" >&2; line ;;'
    assert "list) line ;;" in TAP_CTL
    (dom0.directory / "bin" / "tap-ctl").write_text(TAP_CTL.replace("list) line ;;", complaint))
    assert dom0.run("remove") == 0


def test_a_parent_that_qemu_writes_is_refused_and_the_image_let_go(dom0: Dom0, image: Path, tmp_path: Path) -> None:
    parent = tmp_path / "base.vhd"
    parent.write_bytes(b"")
    dom0.set("parent", str(parent))
    qdisk(dom0, f"vhd:{parent}", "w")
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") != 0
    assert dom0.key("hotplug-status") == "busy"
    assert dom0.disks() == []
    assert dom0.key("tapdisk-pid") is None


def test_a_parent_that_qemu_reads_may_be_shared(dom0: Dom0, image: Path, tmp_path: Path) -> None:
    parent = tmp_path / "base.vhd"
    parent.write_bytes(b"")
    dom0.set("parent", str(parent))
    qdisk(dom0, f"vhd:{parent}", "r")
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 0


def test_a_guests_loop_device_is_refused_with_the_guests_name(dom0: Dom0, image: Path) -> None:
    """As libxl makes one for a disk with file:."""
    loop(dom0, image, False)
    for key, value in {"node": "/dev/loop7", "dev": "xvdc", "params": str(image)}.items():
        dom0.store.write(f"backend/vbd/9/51744/{key}", value)
    dom0.store.write("/local/domain/9/name", "other")
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") != 0
    assert dom0.key("hotplug-error") == f"vhd:{image}: in use by /dev/loop7 of guest other (xvdc); end that use first"


def test_an_image_that_another_guests_tapdisk_has_is_refused_with_that_guests_name(dom0: Dom0, image: Path) -> None:
    """The image lock decides, tap-ctl names the process, xenstore the guest."""
    other = "backend/vbd/9/51712"
    for key, value in {"tapdisk-pid": "4711", "dev": "xvda", "params": "vhd:/srv/child.vhd"}.items():
        dom0.store.write(f"{other}/{key}", value)
    dom0.store.write("/local/domain/9/name", "other")
    why = f"{image}: in use: tapdisk (pid 4711) reads it; end that use first"
    dom0.set("held", f"tap-ctl: {why}\nholder=4711\n")
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") != 0
    assert dom0.key("hotplug-error") == f"vhd:{image}: in use by guest other (xvda); {why}"
    assert dom0.key("hotplug-status") == "busy"


def test_a_holder_that_is_no_guests_is_named_by_its_process(dom0: Dom0, image: Path) -> None:
    why = f"{image}: in use: vhd-util (pid 4711) has it open for writing; end that use first"
    dom0.set("held", f"holder=4711\ntap-ctl: {why}\n")
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") != 0
    assert dom0.key("hotplug-error") == why
    assert dom0.key("hotplug-status") == "busy"


def test_a_disk_is_kept_only_once_xenstore_knows_it(dom0: Dom0, image: Path) -> None:
    """Until then tapdisk ends with the script: libxl kills it after 40 s, and it alone."""
    dom0.vbd(f"vhd:{image}")
    before = len(dom0.store.log)
    assert dom0.run("add") == 0
    assert [call[0] for call in dom0.calls()] == ["create", "keep"]
    assert ("hotplug-status", "connected") in [(path.rpartition("/")[2], v) for path, v in dom0.store.log[before:]]
    assert not (dom0.directory / "fake" / "owner").exists()


def test_a_disk_that_cannot_be_kept_is_refused_and_undone(dom0: Dom0, image: Path) -> None:
    dom0.set("keep-fails", "tap-ctl: minor 0 has no owner, or lost it\n")
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") != 0
    assert dom0.disks() == []
    # the minor is another disk's soon
    assert not [key for key in ("tapdisk-pid", "tapdisk-minor", "physical-device", "physical-device-path") if dom0.key(key)]
    assert dom0.key("hotplug-error") == f"vhd:{image}: minor 0 has no owner, or lost it"
    assert dom0.key("hotplug-status") == "error"


def test_what_others_see_is_found_and_changed_under_xens_own_lock(dom0: Dom0, image: Path) -> None:
    """Xen's block script looks for other users, and sets up its loop device, with this lock held."""
    (dom0.directory / "lock").mkdir()
    lock = dom0.directory / "lock" / "block"
    lock.touch()
    dom0.vbd(f"vhd:{image}")
    with subprocess.Popen(["flock", "-x", str(lock), "sh", "-c", "echo; read x"], stdin=-1, stdout=-1) as holder:
        assert holder.stdin and holder.stdout and holder.stdout.readline()
        with dom0.start("add") as add:
            wait_for(dom0.disks, "a disk", 20)
            time.sleep(0.5)
            assert add.poll() is None and dom0.key("physical-device") is None
            # what has come meanwhile is seen
            qdisk(dom0, f"vhd:{image}", "w")
            holder.communicate(b"\n", timeout=60)
            assert add.wait(timeout=20) != 0
    assert dom0.key("hotplug-status") == "busy"
    assert dom0.disks() == []


# Xen's own claim_lock
THEIRS = "set -e; . {0}/scripts/locking.sh; claim_lock block; echo theirs; {1}; release_lock block"


def test_a_script_of_xen_that_has_the_lock_is_waited_for(dom0: Dom0, image: Path) -> None:
    dom0.vbd(f"vhd:{image}")
    command = ["bash", "-c", THEIRS.format(dom0.directory, "read -r _")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "theirs\n"
        with dom0.start("add") as add:
            wait_for(dom0.disks, "a disk", 20)
            time.sleep(0.3)
            assert add.poll() is None and dom0.key("hotplug-status") is None
            other.stdin.write("go\n")
            other.stdin.close()
            assert add.wait(20) == 0
    assert not (dom0.directory / "lock/block").exists()


def test_a_script_of_xen_waits_for_ours(dom0: Dom0, image: Path) -> None:
    """The file that the lock is goes with it."""
    dom0.vbd(f"vhd:{image}")
    # keep is called under the lock
    text = TAP_CTL.replace("keep)", "keep)\n\twhile [ ! -e go ]; do sleep 0.05; done")
    (dom0.directory / "bin" / "tap-ctl").write_text(text)
    lock = dom0.directory / "lock/block"
    with dom0.start("add") as add:
        wait_for(lambda: dom0.key("hotplug-status") == "connected", "the disk's status", 20)
        command = ["bash", "-c", THEIRS.format(dom0.directory, ":")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
            time.sleep(0.3)
            assert other.poll() is None and lock.exists()
            dom0.set("go", "")
            assert add.wait(20) == 0
            assert other.wait(20) == 0
    assert not lock.exists()
