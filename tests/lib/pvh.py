# SPDX-License-Identifier: LGPL-2.1-only
"""Beds for PVH guests.

Where another CPU has Xen change what the guest's pages are, TCG of QEMU 7.2 now and then loses the guest, or Xen, at an
exit: they go on with the other's page tables. So the guest and the xl that makes or moves it share a CPU, the other is
for the rest of dom0. Between two hosts that takes more than ten minutes.
"""

from typing import Any

PVH_CPU = "max,-smap,-rdtscp,-xsave"
"""PVH guests need more than the default model has. With xsave a guest loses the contents of its registers on the way, in
emulation, and with AVX, which goes with it, programs in dom0 crash now and then."""
PVH_BED: dict[str, Any] = {"cpu": PVH_CPU, "xen_args": "dom0_vcpus_pin"}
GUEST_EXTRA = 'cpus = "1"\n'
XL = "taskset -c 1 xl"
