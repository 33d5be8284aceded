# SPDX-License-Identifier: LGPL-2.1-only
"""The driver when memory is refused it, everywhere in turn. Needs the kernel `kasan`, which refuses it on demand."""

from tests.lib.toytap import STARVE
from tests.lib.vm import Bed

REFUSE = """
mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
cd /sys/kernel/debug
echo N > failslab/ignore-gfp-wait; echo N > fail_page_alloc/ignore-gfp-wait; echo 0 > fail_page_alloc/min-order
for kind in failslab fail_page_alloc fail_usercopy; do echo 0 > $kind/verbose; done
"""


def test_every_allocation_of_an_ioctl_may_fail(bed: Bed) -> None:
    bed.run(REFUSE)
    # of a page that it did not get, the allocator says from where it was asked for
    bed.expect_log(r"page allocation failure|Call Trace:$")
    bed.run("truncate -s 1M /srv/starve.img")
    result = bed.run(f"{STARVE} 5 /srv/starve.img; rm /srv/starve.img", timeout=300, check=False)
    assert result.output.endswith("done\n"), result.output
    # devtmpfs needs memory to remove a node, too
    bed.run("rm -f /dev/xen/blktap-2/blktap5 /dev/xen/blktap-2/tapdev5")
    print(result.output)
    failures = dict(line.split(": ", 1) for line in result.stdout.splitlines() if "failures" in line)
    for name in ("ALLOC", "SETUP", "CREATE_DEVICE", "ADD_EXTENTS"):
        assert int(failures[name].split()[0]) > 3, result.output
