# SPDX-License-Identifier: LGPL-2.1-only
"""tests/bed: boot a bed with our build, run one command in it, relay its output, end with its status."""

import argparse
import os
import shlex
import signal
import sys
import termios
import threading
import tty
from pathlib import Path

from tests.lib import cache
from tests.lib.apt import AptError
from tests.lib.image import ImageError
from tests.lib.qemu import BedSpec, Disk
from tests.lib.stage import STAGE_VARIABLE, StageError
from tests.lib.vm import Bed, BedError

EXIT_BED = 125  # the bed failed, not the command, as `docker run` has it


def parser() -> argparse.ArgumentParser:
    """The command line."""
    text = "Boot a virtual machine with our build, run COMMAND there, relay its output, exit with its status."
    result = argparse.ArgumentParser("tests/bed", description=text, epilog="Exit status 125: the bed itself failed.")
    result.add_argument("--release", type=int, choices=(12, 13), default=12, help="Debian release (default 12)")
    result.add_argument("--xen", action=argparse.BooleanOptionalAction, default=True, help="boot Xen (default)")
    result.add_argument("--init", choices=("sh", "systemd"), default="sh", help="a short script (default) or systemd")
    result.add_argument("--package", action="append", default=[], metavar="P", help="a Debian package (repeats)")
    result.add_argument("--cpu", default="", metavar="MODEL", help="CPU model of QEMU")
    result.add_argument("--memory", type=int, default=0, metavar="MB", help="memory of the machine")
    result.add_argument("--disk", action="append", default=[], metavar="FILE", help="an extra raw disk (repeats)")
    result.add_argument("--stage", metavar="DIR", help="a tree instead of `make install`'s; none: only the module")
    result.add_argument("--put", action="append", default=[], metavar="FILE", help="copy FILE to /root (repeats)")
    result.add_argument("--get", action="append", default=[], metavar="FILE", help="copy the bed's FILE here")
    result.add_argument("--timeout", type=float, default=3600.0, metavar="S", help="seconds for COMMAND (default 3600)")
    result.add_argument("--keep", action="store_true", help="afterwards, leave a shell on the bed")
    result.add_argument("--shell", action="store_true", help="a shell instead of COMMAND")
    result.add_argument("--console", action="store_true", help="print the console's end afterwards")
    result.add_argument("command", nargs="*", metavar="COMMAND", help="one argument: a line for /bin/sh")
    return result


def relay(is_stderr: bool, data: bytes) -> None:
    """Pass a command's output on."""
    stream = sys.stderr.buffer if is_stderr else sys.stdout.buffer
    stream.write(data)
    stream.flush()


def shell(bed: Bed) -> int:
    """An interactive shell, by script(1) for its terminal."""
    process = bed.popen("TERM=vt100 exec script -qec 'bash -l' /dev/null", relay=relay)
    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd) if os.isatty(fd) else None
    try:
        if saved is not None:
            tty.setraw(fd)

        def feed() -> None:
            while data := os.read(fd, 4096):
                process.stdin(data)
            process.stdin(b"")

        threading.Thread(target=feed, daemon=True).start()
        return process.wait(timeout=24 * 3600.0, check=False).status
    finally:
        if saved is not None:
            termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def main() -> int:
    """The program. Returns its exit status."""
    args = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not args.command and not (args.shell or args.keep):
        parser().error("COMMAND is missing (or --shell)")
    if args.stage:
        os.environ[STAGE_VARIABLE] = args.stage
    line = "" if not args.command else args.command[0] if len(args.command) == 1 else shlex.join(args.command)
    try:
        spec = BedSpec(
            release=args.release,
            xen=args.xen,
            init=args.init,
            packages=tuple(args.package),
            cpu=args.cpu,
            memory=args.memory,
            disks=tuple(Disk(Path(path)) for path in args.disk),
        )
        with Bed(spec) as bed:
            cache.say(f"{bed}: ready in {bed.boot_seconds:.1f} s")
            for name in args.put:
                path = Path(name)
                bed.put(f"/root/{path.name}", path.read_bytes(), path.stat().st_mode & 0o777)
            status = bed.popen(line, relay=relay).wait(args.timeout, check=False).status if line else 0
            for name in args.get:
                Path(Path(name).name).write_bytes(bed.get(name))
            if args.shell or args.keep:
                status = shell(bed) if args.shell else (shell(bed), status)[1]
            for finding in bed.dmesg_findings():
                cache.say(f"dmesg: {finding}")
            if args.console:
                print(bed.console.tail(), file=sys.stderr)
            return status
    except (AptError, BedError, ImageError, StageError, OSError) as error:
        print(f"tests/bed: {error}", file=sys.stderr)
        return EXIT_BED
