# SPDX-License-Identifier: LGPL-2.1-only
"""Does each checker report? The driver with one fault put in, in a bed whose kernel has the checker.

    python3 -m tests.kernels.mutants [NAME...]

A mutant that its kernel says nothing of ends with status 1.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lib import builder, stage
from tests.lib.checkkernel import with_kernel
from tests.lib.image import base_image
from tests.lib.initrd import Overlay
from tests.lib.qemu import BedSpec
from tests.lib.toytap import Tap, prepare
from tests.lib.vm import Bed, BedError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """A fault: `old`, found once in a file of kernel-patches/src, becomes `new`; what the kernel must say then.

    use: what is done with the disk of a toy server with these options.
    """

    name: str
    kernel: str
    file: str
    old: str
    new: str
    says: str
    options: tuple[tuple[str, int], ...] = ()
    use: str = "dd if=/root/random of={device} bs=64k count=32 oflag=direct; dd if={device} of=/dev/null bs=64k count=32"


EXTENTS = (("extents", 1),)
MUTANTS = (
    Mutant(
        "a request is completed twice",
        "kasan",
        "queue.c",
        "\tblk_mq_end_request(rq, status);\n",
        "\tblk_mq_end_request(rq, status);\n\tblk_mq_end_request(rq, status);\n",
        r"refcount_t: underflow|KASAN|BUG|WARNING: ",
    ),
    Mutant(
        "an extent is freed while it is in the tree",
        "kasan",
        "extent.c",
        "\tif (ret)\n\t\tkfree(e);\n\treturn ret;",
        "\tkfree(e);\n\treturn ret;",
        r"KASAN: (?:slab-)?use-after-free in blktap_",
        EXTENTS,
    ),
    Mutant(
        "the buffer of bvecs is one too short",
        "kasan",
        "queue.c",
        "struct_size_t(struct blktap_rq, bvec, tap->max_bvecs)",
        "sizeof(struct blktap_rq)",
        r"KASAN: |UBSAN: |BUG: |general protection",
        EXTENTS,
    ),
    Mutant(
        "two locks are taken in both orders",
        "kasan",
        "device.c",
        "\t/* removal sets it under the open_mutex that is held here */\n",
        "\tmutex_lock(&tap->lock);\n\tmutex_unlock(&tap->lock);\n",
        r"possible circular locking dependency",
    ),
    Mutant(
        "a lock that interrupts take is taken with interrupts on",
        "kasan",
        "enter.c",
        "\tspin_lock_irq(&tap->rq_lock);\n\tbrq = list_first",
        "\tspin_lock_irq(&tap->rq_lock);\n\tlocal_irq_enable();\n\tbrq = list_first",
        r"inconsistent lock state|irq lock inversion|-safe.*lock order|WARNING: ",
        EXTENTS,
        "dd if=/root/random of={device} bs=64k count=32 oflag=direct; mkfs.ext4 -q {device}",
    ),
    Mutant(
        "a spinlock is held over what may sleep",
        "kasan",
        "enter.c",
        "\tspin_unlock_irq(&tap->rq_lock);\n\treturn brq ?",
        "\tmight_sleep();\n\tspin_unlock_irq(&tap->rq_lock);\n\treturn brq ?",
        r"sleeping function called from invalid context",
    ),
    Mutant(
        "extents that are withdrawn are not freed",
        "kasan",
        "extent.c",
        "\t\tkfree(dead);\n",
        "",
        r"unreferenced object",
        EXTENTS,
    ),
    Mutant(
        "what poll() reads is written without a mark",
        "kcsan",
        "enter.c",
        "\tWRITE_ONCE(q->sq_tail, q->sq_tail + 1);\n",
        "\tq->sq_tail++;\n",
        r"BUG: KCSAN: data-race in blktap_",
        (),
        "fio --name=x --filename={device} --rw=randwrite --bs=4k --size=64M --io_size=24M --direct=1 --iodepth=16 --ioengine=libaio",
    ),
)

class MutantError(Exception):
    """A mutant can't be made."""


def mutated(mutant: Mutant) -> str:
    """The file with the fault."""
    text = (ROOT / "kernel-patches/src" / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise MutantError(f"{mutant.name}: {mutant.file} has its text {text.count(mutant.old)} times; say it anew")
    return text.replace(mutant.old, mutant.new)


def module(mutant: Mutant, directory: Path, headers: Path) -> Path:
    """The driver with the fault, built in `directory`."""
    tree = directory / "kernel-patches"
    shutil.copytree(ROOT / "kernel-patches", tree)
    (tree / "src" / mutant.file).write_text(mutated(mutant), encoding="utf-8")
    result = builder.run(["make", "-s", "-C", str(tree), f"KDIR={headers}", f"OUT={directory}/out"], ROOT)
    if result.returncode:
        raise MutantError(f"{mutant.name}: does not build\n{result.stdout[-3000:]}")
    return directory / "out/blktap.ko"


def what_it_says(mutant: Mutant, toys: Path) -> str:
    """The kernel's log, and what kmemleak has, after the mutant was used."""
    image = with_kernel(base_image(12), mutant.kernel)
    with tempfile.TemporaryDirectory(prefix="xenblk-mutant-", dir="/var/tmp") as directory:
        made = module(mutant, Path(directory), image.headers)
        overlay = Overlay((stage.stage_tree(image),), stage.module_files(image, made))
    # what it wrecks need not be waited for
    with Bed(BedSpec(xen=False, kernel=mutant.kernel, kernel_args="oops=panic"), overlay) as bed:
        try:
            use(mutant, prepare(bed, toys))
        except BedError as error:
            return f"{error}\n{bed.console.text()}"
        except AssertionError as error:
            return f"{error}\n{bed.dmesg()}"
        return "\n".join([bed.dmesg(), *bed.leak_findings()])


def use(mutant: Mutant, bed: Bed) -> None:
    """A server comes, its disk is used, and all goes."""
    tap = Tap(bed)
    tap.start(**dict(mutant.options))
    bed.run(mutant.use.format(device=tap.device), check=False)
    tap.signal("USR1")
    tap.expect("removed\n")
    tap.close()


def main() -> int:
    """The program. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="tests.kernels.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="*", help="those whose name has this in it; all if none is given")
    names = parser.parse_args().name
    silent = 0
    with tempfile.TemporaryDirectory(prefix="xenblk-toys-") as out:
        subprocess.run(["make", "-s", "-C", ROOT / "kernel-patches", "toy", f"OUT={out}"], check=True)
        for mutant in MUTANTS:
            if names and not any(name in mutant.name for name in names):
                continue
            begun = time.monotonic()
            text = what_it_says(mutant, Path(out))
            found = [line for line in text.splitlines() if re.search(mutant.says, line)]
            silent += not found
            line = found[0].partition("] ")[2] or found[0] if found else "NOTHING"
            print(f"{mutant.kernel}: {mutant.name}: {line} ({time.monotonic() - begun:.0f} s)", flush=True)
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
