# SPDX-License-Identifier: LGPL-2.1-only
"""An NFS server in a bed and its soft mount there: the bed is its own file server."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lib.vm import Bed

MOUNT = "/mnt/nfs"
# The soft mount's first try, of 3 s, and one more; the kernel says EIO after some 9 s then. A server that is only slow takes less.
OPTIONS = "vers=4.2,soft,timeo=30,retrans=1"
# NFS 4 alone, which needs no portmapper; leases and the grace after a restart in seconds, the least that is allowed.
START = "rpc.nfsd -N 3 -G 10 -L 10 2"
STOP = "rpc.nfsd 0"

SET_UP = f"""
modprobe -a nfs nfsv4 nfsd
mkdir -p /srv/export {MOUNT} /var/lib/nfs/nfsdcltrack /var/lib/nfs/v4recovery
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
echo '/srv/export 127.0.0.1(rw,fsid=0,no_root_squash,no_subtree_check,insecure)' > /etc/exports
exportfs -ra
rpc.mountd -N 2 -N 3
{START}
mount -t nfs4 -o {OPTIONS} 127.0.0.1:/ {MOUNT}
"""
TEAR_DOWN = f"""
umount {MOUNT} || umount -lf {MOUNT}
{STOP}
pkill -x rpc.mountd
exportfs -ua
umount /proc/fs/nfsd
rm -rf /srv/export /etc/exports
true
"""


@contextmanager
def soft_mount(bed: Bed) -> Iterator[None]:
    """The mount is there, and gone afterwards with its server."""
    bed.run(SET_UP)
    try:
        yield
    finally:
        bed.run(START + "; true")
        bed.run(TEAR_DOWN)


@contextmanager
def away(bed: Bed) -> Iterator[None]:
    """The server is stopped meanwhile. Its clients go on when it has been told by them what they had."""
    bed.run(STOP)
    try:
        yield
    finally:
        bed.run(START)
