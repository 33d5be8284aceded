# SPDX-License-Identifier: LGPL-2.1-only
"""Where a bed has the emulator with the series, and what makes it one of Debian's there."""

from tests.ioemu.qemu import EMULATOR

PLACE = f"/srv/{EMULATOR}"
# Debian's keymaps, which the built one looks for elsewhere
KEYMAPS = ("-L", "/usr/share/qemu")
COHERENT = (*KEYMAPS, "-global", "ide-hd.direct-host-device=on")
