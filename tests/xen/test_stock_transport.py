# SPDX-License-Identifier: LGPL-2.1-only
"""The main job without our module: a guest on VHD chains whose gendisks the stock kernel makes."""

from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.vm import Bed
from tests.xen.test_main_job import MEGABYTES, USE_DISK, sums

WITHOUT_OURS = "modprobe -r blktap; echo 'install blktap /bin/false' > /etc/modprobe.d/test.conf"
WITH_OURS = "rm /etc/modprobe.d/test.conf"


@pytest.fixture
def bed(request: pytest.FixtureRequest, beds: Beds) -> Iterator[Bed]:
    """Without our module, and with the transport of the parameter."""
    release, transport = request.param
    with tapdisks.clean(beds(release=release)) as bed:
        bed.run(WITHOUT_OURS)
        with tapdisks.with_settings(bed, f"transport: {transport}", "restart: yes"):
            yield bed
        assert "minor=" not in bed.run("tap-ctl list").stdout
        assert bed.run("ls /run/blktap-control /dev/xen/blktap-2 | grep -E 'minor|tapdev'", check=False).stdout == ""
        bed.run(WITH_OURS)


@pytest.mark.deep
@pytest.mark.parametrize("bed", [(12, "nbd"), (13, "ublk")], indirect=True, ids=["nbd-12", "ublk-13"])
def test_a_guest_on_chains_whose_tapdisks_are_killed_and_upgraded(bed: Bed) -> None:
    leaves = [tapdisks.make_chain(bed, f"/srv/stock{n}", n, MEGABYTES)[0] for n in (1, 3)]
    specs = {"xvda": f"vhd:{leaves[0]}", "xvdb": f"vhd:{leaves[1]}"}
    script = USE_DISK + "use_disk xvda 20; echo first; use_disk xvdb 24; echo second; use_disk xvda 25; use_disk xvdb 26; read -r told"
    guest = Guest(bed, "stock", script, disks=[f"tap2:{spec},{vdev},w" for vdev, spec in specs.items()])
    try:
        guest.start(create="xl create")
        served = {disk.args: disk for disk in tapdisks.served(bed)}
        assert set(served) == set(specs.values())
        guest.wait_text("^first$")
        killed = served[specs["xvdb"]]
        bed.run(f"kill -9 {killed.pid}")
        guest.wait_text("^second$")
        upgraded = served[specs["xvda"]]
        bed.run(f"tap-ctl upgrade -m {upgraded.minor}", timeout=120)
        now = {disk.args: disk for disk in tapdisks.served(bed)}
        assert all(now[spec].pid != served[spec].pid and now[spec].minor == served[spec].minor for spec in specs.values())
        guest.say("end")
        output = guest.wait().output
        guest.wait_gone()
        bed.wait_for('test -z "$(tap-ctl list)"', 60)
    finally:
        guest.destroy()
    assert output.count(f" size {MEGABYTES * 2048}\n") == 4
    assert sums(output) == {vdev: tapdisks.checksum(bed, spec, MEGABYTES) for vdev, spec in specs.items()}
    for leaf in leaves:
        bed.run(f"vhd-util check -n {leaf} -p -b")
    bed.run("rm -rf /srv/stock1 /srv/stock3")
