# SPDX-License-Identifier: LGPL-2.1-only
"""Two beds that are hosts with a file system in common: the first one's SHARE, which the second has by NFS."""

from pathlib import Path
from typing import Any

from tests.lib.vm import Bed

SHARE = "/srv/share"
ADDRESSES = ("10.9.0.1", "10.9.0.2")


def wire(directory: Path, first: bool) -> dict[str, Any]:
    """What the spec of a bed (qemu.BedSpec) has to have; the first is started before the second."""
    return {"link": directory / "wire", "link_first": first}


def connect(first: Bed, second: Bed) -> None:
    """Beds at the ends of a wire become such hosts, with the driver."""
    for bed, address in zip((first, second), ADDRESSES, strict=True):
        bed.run(f"modprobe virtio_net && ip addr add {address}/24 dev eth0 && ip link set eth0 up && mkdir {SHARE}")
        bed.run("modprobe blktap")
    first.run(
        f"modprobe nfsd; mkdir -p /var/lib/nfs/nfsdcltrack /var/lib/nfs/v4recovery; mount -t nfsd nfsd /proc/fs/nfsd;"
        f" echo '{SHARE} {ADDRESSES[1]}(rw,fsid=0,no_root_squash,no_subtree_check,insecure)' > /etc/exports && exportfs -ra"
        " && rpc.mountd -N 2 -N 3 && rpc.nfsd -N 3 -G 10 -L 10 2"
    )
    second.run(f"modprobe -a nfs nfsv4; mount -t nfs4 -o vers=4.2 {ADDRESSES[0]}:/ {SHARE}", timeout=300)
