# SPDX-License-Identifier: LGPL-2.1-only
"""The beds of the vm tier, with the kernel that $XENBLK_KERNEL names."""

from tests.vm.conftest import bed, no_leaks, release, tap, toys

__all__ = ["bed", "no_leaks", "release", "tap", "toys"]
