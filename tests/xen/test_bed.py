# SPDX-License-Identifier: LGPL-2.1-only
"""The bed with Xen: dom0 and its toolstack."""

from lib.beds import Beds


def test_dom0_runs_on_xen_with_its_daemons(beds: Beds) -> None:
    bed = beds()
    assert bed.run("xl list | awk 'NR == 2 { print $1, $2 }'").stdout == "Domain-0 0\n"
    assert "control_d" in bed.get("/proc/xen/capabilities").decode()
    bed.run("xenstore-write /tool/bed probe")
    assert bed.run("xenstore-read /tool/bed").stdout == "probe\n"
