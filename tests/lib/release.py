# SPDX-License-Identifier: LGPL-2.1-only
"""The Debian releases that a bed can run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """One Debian release: its number, suite and Xen version."""

    number: int
    suite: str
    xen: str

    @property
    def packages(self) -> tuple[str, ...]:
        """What every bed of this release has installed."""
        return (
            f"xen-utils-{self.xen}",
            "xenstore-utils",
            "qemu-system-xen",
            "qemu-utils",
            "kmod",
            "util-linux",
            "mount",
            "e2fsprogs",
            "xfsprogs",
            "python3",
            "python3-cffi-backend",
            "python3-yaml",
            "liburing2",
            "libjansson4",
            "libuuid1",
            "iproute2",
            "procps",
            "nbd-client",
            "nfs-kernel-server",
            "busybox-static",
            "lvm2",
            "fio",
            "strace",
            "udev",
            "systemd-sysv",
        )


RELEASES = {12: Release(12, "bookworm", "4.17"), 13: Release(13, "trixie", "4.20")}
