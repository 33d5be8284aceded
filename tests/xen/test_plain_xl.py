# SPDX-License-Identifier: LGPL-2.1-only
"""Plain xl with tap2: disks, as Debian's administrators and programs call it: a shell, sudo, cron, xendomains."""

from collections.abc import Iterator

import pytest

from tests.lib import bridge, tapdisks
from tests.lib.beds import Beds
from tests.lib.guest import CREATE_SECONDS, Guest
from tests.lib.vm import Bed

MEGABYTES = 24
SAVE_SECONDS = 240.0

# Counts on its disk, read back past the cache, and on the console, until a second disk comes; then copies itself there.
COUNT = """
wait_for_disk xvda
tick=0
until [ -b /dev/xvdb ]; do
	tick=$((tick + 1))
	echo "tick $tick" | dd of=/dev/xvda bs=512 seek=$tick conv=sync,fsync 2>/dev/null || exit 1
	echo 3 > /proc/sys/vm/drop_caches
	[ "$(dd if=/dev/xvda bs=512 skip=$tick count=1 2>/dev/null | head -n 1)" = "tick $tick" ] || exit 2
	echo "tick $tick"
	sleep 1
done
dd if=/dev/xvda of=/dev/xvdb bs=1M conv=fsync 2>/dev/null || exit 3
"""

# Runs a command from cron and ends as it did, with its output
FROM_CRON = r"""#!/bin/sh
rm -f /root/cron.status /root/cron.begun
{
	echo 'PATH=/usr/sbin:/usr/bin:/sbin:/bin'
	echo "* * * * * root test -e /root/cron.begun || { touch /root/cron.begun;" \
		"$* >/root/cron.output 2>&1; echo \$? >/root/cron.status; }"
} >/etc/cron.d/.guest # a name that cron passes by
mv /etc/cron.d/.guest /etc/cron.d/guest
until test -s /root/cron.status; do sleep 1; done
rm -f /etc/cron.d/guest
cat /root/cron.output
exit "$(cat /root/cron.status)"
"""


def real_xl(bed: Bed) -> str:
    """Xen's own, of the version that runs."""
    major, minor = (bed.run(f"cat /sys/hypervisor/version/{part}").stdout.strip() for part in ("major", "minor"))
    return f"/usr/lib/xen-{major}.{minor}/bin/xl"


def packed(text: str) -> str:
    """JSON without what Xen's versions write differently: spaces, and slashes that are escaped."""
    return "".join(text.split()).replace("\\/", "/")


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    with tapdisks.clean(beds(init="systemd", packages=("cron", "sudo"))) as bed:
        yield bed


def ticks(guest: Guest) -> int:
    """How far the guest has counted."""
    return guest.console.count("\ntick ")


def wait_ticks(guest: Guest, more: int) -> None:
    """Wait until the guest has counted on."""
    guest.wait_text(rf"^tick {ticks(guest) + more}$")


def finish(guest: Guest, disk: str, extra: str) -> None:
    """Attach a second disk, in parts as xl takes them; the guest ends, and the disks are the same."""
    bed = guest.bed
    bed.run(f"xl block-attach {guest.name} tap2:vhd:{extra} xvdb access=w")
    guest.wait()
    guest.wait_gone()
    sums = {tapdisks.checksum(bed, f"vhd:{path}", MEGABYTES) for path in (disk, extra)}
    assert len(sums) == 1


@pytest.mark.deep
@pytest.mark.slow
def test_systemd_starts_debians_xen_service(bed: Bed) -> None:
    """The bed itself."""
    assert bed.run("systemctl is-active xen.service").stdout == "active\n"
    assert bed.run("systemctl --failed --plain --no-legend").stdout == ""
    bed.run("xl list")


@pytest.mark.slow
def test_a_shell_creates_a_guest_and_saves_and_restores_it_with_its_configuration(bed: Bed) -> None:
    disk, extra = (tapdisks.make_chain(bed, f"/srv/{name}", 2, MEGABYTES)[0] for name in ("shell", "extra"))
    guest = Guest(bed, "shell", COUNT, disks=[f"tap2:vhd:{disk},xvda,w"])
    try:
        guest.start()
        wait_ticks(guest, 2)
        assert [served.args for served in tapdisks.served(bed)] == [f"vhd:{disk}"]
        # nothing of ours is left between the shell and xl's own daemon
        daemon = bed.run("pgrep -x xl").stdout.split()
        assert len(daemon) == 1
        assert bed.run(f"readlink /proc/{daemon[0]}/exe").stdout == f"{real_xl(bed)}\n"
        assert bed.run("ps -C xl -o args=").stdout.startswith(f"{real_xl(bed)} create {guest.config_path} disk=[")
        assert bed.run("pgrep -f '[x]enblk ' || true").stdout == ""
        shown = bed.run(f"xl -N config-update {guest.name} {guest.config_path}").stdout
        assert '"script":"block-xenblk"' in packed(shown)
        bed.run(f"xl config-update {guest.name} {guest.config_path}")
        assert bed.run("grep -c script=block-xenblk /var/lib/xen/userdata-*.xl").stdout == "1\n"
        bed.run(f"xl save {guest.name} /srv/shell.save {guest.config_path}", timeout=SAVE_SECONDS)
        assert tapdisks.served(bed) == []
        bed.run(f"xl restore {guest.config_path} /srv/shell.save", timeout=SAVE_SECONDS)
        assert [served.args for served in tapdisks.served(bed)] == [f"vhd:{disk}"]
        wait_ticks(guest, 2)
        finish(guest, disk, extra)
    finally:
        guest.destroy()
    bed.run("rm -rf /srv/shell* /srv/extra")


@pytest.mark.deep
@pytest.mark.slow
def test_xendomains_starts_a_guest_and_keeps_it_over_a_restart_of_the_host(bed: Bed) -> None:
    """Debian's xendomains creates what is in /etc/xen/auto, saves all guests when it stops, and restores them."""
    disk, extra = (tapdisks.make_chain(bed, f"/srv/{name}", 2, MEGABYTES)[0] for name in ("auto", "extra"))
    guest = Guest(bed, "auto", COUNT, disks=[f"tap2:vhd:{disk},xvda,w"])
    bed.put("/root/autostart", b"#!/bin/sh\nln -s $1 /etc/xen/auto/ && systemctl start xendomains\n", 0o755)
    try:
        bed.run("mkdir -p /etc/xen/auto && systemctl stop xendomains")
        guest.start(create="/root/autostart")
        wait_ticks(guest, 2)
        bed.run("systemctl stop xendomains", timeout=SAVE_SECONDS)
        assert tapdisks.served(bed) == []
        assert bed.run(f"xl domid {guest.name}", check=False).status != 0
        bed.run(f"test -s /var/lib/xen/save/{guest.name}")
        bed.run("systemctl start xendomains", timeout=SAVE_SECONDS)
        assert [served.args for served in tapdisks.served(bed)] == [f"vhd:{disk}"]
        bed.run(f"test ! -e /var/lib/xen/save/{guest.name}")
        wait_ticks(guest, 2)
        finish(guest, disk, extra)
    finally:
        guest.destroy()
        bed.run("rm -f /etc/xen/auto/* /var/lib/xen/save/*")
    bed.run("rm -rf /srv/auto /srv/extra")


@pytest.mark.deep
@pytest.mark.slow
def test_sudo_and_cron_get_a_guest_with_its_tap_disk(bed: Bed) -> None:
    disk = tapdisks.make_chain(bed, "/srv/caller", 2, MEGABYTES)[0]
    guest = Guest(bed, "caller", "exit 0", disks=[f"tap2:vhd:{disk},xvda,w"])
    bed.put("/root/from-cron", FROM_CRON.encode(), 0o755)
    try:
        for caller in ("sudo -n", "/root/from-cron"):
            guest.start(create=f"{caller} xl cr -p", timeout=CREATE_SECONDS + 60)
            assert [served.args for served in tapdisks.served(bed)] == [f"vhd:{disk}"]
            assert bed.run("ps -C xl -o args=").stdout.startswith(f"{real_xl(bed)} cr -p {guest.config_path} disk=[")
            bed.run(f"xl destroy {guest.name}")
            guest.wait_gone()
            assert tapdisks.served(bed) == []
    finally:
        guest.destroy()
    bed.run("rm -rf /srv/caller")


def test_exit_status_and_words_are_those_of_xens_xl(bed: Bed) -> None:
    bed.put("/srv/status/cfg", b"name = 'x'\ndisk = [ 'tap2:vhd:/srv/none.vhd,xvda,w' ]\n")
    for words in ("list", "list nosuch", "domid nosuch", "nosuch", "-Z", "", "create /nosuch", "create -z", "save"):
        ours = bed.run(f"xl {words}", check=False)
        xens = bed.run(f"{real_xl(bed)} {words}", check=False)
        assert (ours.status, ours.stderr) == (xens.status, xens.stderr), words
    refused = bed.run("xl create /srv/status/cfg", check=False)
    assert refused.status == 1
    assert "/srv/none.vhd: No such file or directory" in refused.stderr
    bed.run("truncate -s 1M /srv/status/raw.img")
    attached = packed(bed.run("xl -N block-attach 0 tap2:aio:/srv/status/raw.img xvdz r").stdout)
    for part in ('"script":"block-xenblk"', '"pdev_path":"aio:/srv/status/raw.img"', '"vdev":"xvdz"'):
        assert part in attached
    assert '"readwrite"' not in attached
    bed.run("rm -rf /srv/status")


def test_dpkg_is_told_where_the_next_xl_belongs(bed: Bed) -> None:
    """The bed has the front in place, as by DESTDIR: what an administrator's `make install` and `uninstall` do."""
    script = bridge.ROOT / "hotplug-scripts/set-aside-xl"
    bed.put("/root/set-aside-xl", script.read_bytes(), 0o755)
    bed.run("cp /usr/sbin/xl /root/front")
    owner = "dpkg -S /usr/sbin/xl 2>/dev/null"
    try:
        bed.run("/root/set-aside-xl remove '' /usr")
        assert bed.run("readlink /usr/sbin/xl").stdout == "../lib/xen-common/bin/xen-utils-wrapper\n"
        bed.run("test ! -e /usr/libexec/xl && xl list")
        for _ in range(2):
            bed.run("/root/set-aside-xl add '' /usr && install -m 755 /root/front /usr/sbin/xl")
            assert bed.run("readlink /usr/libexec/xl").stdout == "../lib/xen-common/bin/xen-utils-wrapper\n"
            assert bed.run("dpkg-divert --truename /usr/sbin/xl").stdout == "/usr/libexec/xl\n"
            assert bed.run("xl domname 0").stdout == "Domain-0\n"
        for _ in range(2):
            bed.run("/root/set-aside-xl remove '' /usr")
            assert bed.run("readlink /usr/sbin/xl").stdout == "../lib/xen-common/bin/xen-utils-wrapper\n"
        assert bed.run("dpkg-divert --truename /usr/sbin/xl").stdout == "/usr/sbin/xl\n"
        assert bed.run(owner).stdout == "xen-utils-common: /usr/sbin/xl\n"
        bed.run("test ! -e /usr/libexec/xl")
    finally:
        bed.run("/root/set-aside-xl add '' /usr && install -m 755 /root/front /usr/sbin/xl")
