# SPDX-License-Identifier: LGPL-2.1-only
"""An HVM guest that boots from a VHD chain by emulated IDE, and what must hold of QEMU and the images meanwhile."""

from tests.lib import hvm, tapdisks
from tests.lib.hvm import HvmGuest, in_image, line, text_of
from tests.lib.vm import Bed

MEGABYTES = 10


def boots(bed: Bed, arguments: tuple[str, ...] = (), emulator: str = "") -> None:
    """Raises AssertionError or BedError. `emulator`: another QEMU than the bed's, with more `arguments`."""
    base, leaf = "/srv/hvm/base.vhd", "/srv/hvm/leaf.vhd"
    bed.run(f"mkdir -p /srv/hvm && vhd-util create -n {base} -s {MEGABYTES}")
    from_base, hidden, from_leaf = line("base"), line("hidden"), line("leaf")
    sectors = {0: hvm.boot_sector(), hvm.READ_BASE: from_base, hvm.READ_LEAF: hidden}
    tapdisks.write(bed, f"vhd:{base}", sectors)
    bed.run(f"vhd-util snapshot -n {leaf} -p {base}")
    tapdisks.write(bed, f"vhd:{leaf}", {hvm.READ_LEAF: from_leaf})
    before = bed.run(f"sha256sum {base}").stdout

    guest = HvmGuest(bed, "bios", [f"tap2:vhd:{leaf},hda,w"], arguments, emulator=emulator)
    try:
        guest.start(create=tapdisks.CREATE)
        guest.wait_text(r"^boot: (done|failed)\n")
        assert guest.console == (
            f"boot: begin\nboot: leaf {text_of(from_leaf)}\nboot: base {text_of(from_base)}\n"
            f"boot: back {text_of(from_base)}\nboot: flushed\nboot: done\n"
        )
        if emulator:
            assert guest.qemu_arguments()[0] == emulator
        # QEMU has the device, as raw, and tapdisk alone has the images.
        [disk] = tapdisks.served(bed)
        drives = [word for word in guest.qemu_arguments() if word.startswith("file=")]
        assert len(drives) == 1
        assert {f"file={disk.device}", "if=ide", "format=raw", "cache=writeback"} <= set(drives[0].split(","))
        assert tapdisks.openers(bed, [base, leaf]) == {("tapdisk", base), ("tapdisk", leaf)}
        [(user, _)] = tapdisks.openers(bed, [disk.device])
        assert "qemu" in user
        # What the guest flushed is in the image while QEMU still runs.
        assert in_image(bed, leaf, hvm.WRITE_FLUSHED) == from_base
        bed.run(f"xl destroy {guest.name}")
    finally:
        guest.destroy()
    # QEMU is killed, but keeps nothing to itself: what the guest did not flush is there as well.
    assert in_image(bed, leaf, hvm.WRITE_CACHED) == from_base
    assert in_image(bed, leaf, hvm.WRITE_FLUSHED) == from_base
    assert bed.run(f"sha256sum {base}").stdout == before
    bed.run(f"vhd-util check -n {leaf} -p -b && rm -rf /srv/hvm")
