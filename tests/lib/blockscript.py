# SPDX-License-Identifier: LGPL-2.1-only
"""block-xenblk between a xenstored in memory and a tap-ctl that only keeps books."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lib import bridge, xenstored
from tests.lib.programs import program

VBD = "backend/vbd/5/51712"

# A tapdisk is a process that has the image and its parents open, as the real one does.
TAP_CTL = r"""#!/bin/bash
cd "$FAKE" || exit 9
printf '%s\0' "$@" >>calls; echo >>calls
verb=$1; shift
pid= minor= args= owner= inactive= mode='<>'
while [ $# -gt 0 ]; do
	case $1 in
	-p) pid=$2; shift 2 ;;
	-m) minor=$2; shift 2 ;;
	-a) args=$2; shift 2 ;;
	-R) mode='<'; shift ;;
	-t) shift 2 ;;
	--owner=*) owner=${1#*=}; shift ;;
	--inactive | --suspended) inactive=1; shift ;;
	--wait=* | --for=*) shift ;;
	*) echo "tap-ctl: $1?" >&2; exit 2 ;;
	esac
done
line() { sed -n "s/^/&/;/ minor=${minor:-.*} /{/^pid=${pid:-.*} /p}" disks 2>/dev/null; }
case $verb in
create)
	[ ! -e create-fails ] || { cat create-fails; exit 1; } >&2
	[ ! -e held ] || [ -n "$inactive" ] || { cat held; exit 1; }
	[ ! -e create-delay ] || sleep "$(cat create-delay)"
	while [ "$(cat create-hangs 2>/dev/null)" = "$args" ]; do sleep 0.05; done
	[ -e "${args#*:}" ] || { echo "tap-ctl: $args: No such file or directory" >&2; exit 1; }
	eval "exec 3$mode\"\${args#*:}\""
	[ ! -e parent ] || exec 4<"$(cat parent)"
	exec 8>books
	flock 8
	setsid sleep 1000 </dev/null >/dev/null 2>&1 8>&- &
	minor=$(cat next-minor 2>/dev/null || echo 0)
	echo "$((minor + 1))" >next-minor
	echo "pid=$! minor=$minor state=0 args=$args" >>disks
	ln -s /dev/null "tapdev$minor"
	[ ! -e warn ] || cat warn >&2
	echo "$owner" >owner
	echo "$FAKE/tapdev$minor"
	[ -z "$owner" ] || echo "pid=$! minor=$minor"
	;;
keep)
	[ ! -e keep-fails ] || { cat keep-fails >&2; exit 1; }
	[ -n "$(line)" ] && rm -f owner
	;;
list) line ;;
destroy)
	[ -n "$(line)" ] && kill -0 "$pid" || { echo "tap-ctl: no tapdisk $pid with minor $minor" >&2; exit 1; }
	if [ -s busy ]; then
		sed -i 1d busy
		echo "tap-ctl: minor $minor: Device or resource busy" >&2
		exit 1
	fi
	kill "$pid"
	exec 8>books
	flock 8
	sed -i "/^pid=$pid minor=$minor /d" disks
	rm "tapdev$minor"
	;;
free) sed -i "/ minor=$minor /d" disks ;;
esac
"""


@dataclass
class Dom0:
    """A dom0 with one guest disk: its store, the files that the script uses and what it called."""

    directory: Path
    store: xenstored.Xenstore
    script: Path

    def vbd(self, params: str, path: str = VBD, mode: str = "w") -> None:
        """What libxl writes before it calls the script."""
        for key, value in {"params": params, "mode": mode, "state": "2", "online": "1"}.items():
            self.store.write(f"{path}/{key}", value)
        self.store.write(f"{path}/script", "/etc/xen/scripts/block-xenblk")

    def environment(self, path: str = VBD) -> dict[str, str]:
        """What libxl sets for the script, and where the tests have moved things."""
        return bridge.environment(
            FAKE=str(self.directory / "fake"),
            XENSTORED_PATH=str(self.directory / "xenstored"),
            XENBLK_SYSFS=str(self.directory / "sys"),
            XENBLK_LOCK_DIR=str(self.directory / "lock"),
            XENBLK_CONTROL_DIR=str(self.directory / "fake"),
            XENBUS_PATH=path,
            XENBUS_TYPE="vbd",
            XENBUS_BASE_PATH="backend",
        )

    def start(self, command: str, path: str = VBD) -> "subprocess.Popen[bytes]":
        """The script as libxl starts it."""
        return subprocess.Popen(
            [str(self.script), command], env=self.environment(path), stdin=subprocess.DEVNULL, cwd="/"
        )

    def run(self, command: str, path: str = VBD) -> int:
        """The exit status of the script, within libxl's time limit."""
        with self.start(command, path) as process:
            return process.wait(timeout=40)

    def key(self, name: str, path: str = VBD) -> str | None:
        """A key of the backend node."""
        return self.store.read(f"{path}/{name}")

    def calls(self) -> list[list[str]]:
        """The arguments of each call of tap-ctl."""
        try:
            text = (self.directory / "fake" / "calls").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [line.split("\0")[:-1] for line in text.split("\n")[:-1]]

    def created(self) -> list[str]:
        """What the first call of tap-ctl makes, which must be for this script while it lives, and in its time."""
        verb, *arguments = self.calls()[0]
        assert verb == "create"
        [owner] = [word for word in arguments if word.startswith("--owner=")]
        [wait] = [word for word in arguments if word.startswith("--wait=")]
        assert int(owner.partition("=")[2]) > 1 and 0 < int(wait.partition("=")[2]) < 30
        return [word for word in arguments if word not in (owner, wait)]

    def disks(self) -> list[str]:
        """The lines of tap-ctl list."""
        try:
            return (self.directory / "fake" / "disks").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []

    def set(self, name: str, text: str) -> None:
        """Changes the behaviour of tap-ctl."""
        (self.directory / "fake" / name).write_text(text, encoding="utf-8")

    def log(self) -> str:
        """What an administrator finds."""
        return (self.directory / "log" / "xen-hotplug.log").read_text(encoding="utf-8")


@contextlib.contextmanager
def running(tmp_path: Path) -> Iterator[Dom0]:
    """The script, and beside it Xen's, but for the directories of this machine that they write to."""
    scripts, tools = tmp_path / "scripts", tmp_path / "bin"
    for directory in (scripts, tools, tmp_path / "log", tmp_path / "fake", tmp_path / "sys" / "block"):
        directory.mkdir(parents=True)
    moved = {
        "/var/log/xen": str(tmp_path / "log"),
        "/var/run/xen-hotplug": str(tmp_path / "lock"),
        "PATH=/usr/sbin:": f"PATH={tools}:",
        "/usr/libexec/xenblk-vbd": str(program("xenblk-vbd", source="hotplug-scripts/vbd")),
    }
    for source in (bridge.ROOT / "hotplug-scripts/block-xenblk", bridge.xen_files() / "etc/xen/scripts/locking.sh"):
        text = source.read_text(encoding="utf-8")
        for old, new in moved.items():
            text = text.replace(old, new)
        (scripts / source.name).write_text(text, encoding="utf-8")
        (scripts / source.name).chmod(0o755)
    (tools / "tap-ctl").write_text(TAP_CTL, encoding="utf-8")
    (tools / "tap-ctl").chmod(0o755)
    with xenstored.running(tmp_path / "xenstored") as store:
        bed = Dom0(tmp_path, store, scripts / "block-xenblk")
        yield bed
        for line in bed.disks():
            pid = int(line.split()[0].removeprefix("pid="))
            if pid > 1:
                os.kill(pid, signal.SIGKILL)
