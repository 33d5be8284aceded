# SPDX-License-Identifier: LGPL-2.1-only
"""Linux as a bootable file (bzImage) and as what is packed in it."""

import lzma
import struct

SETUP_SECTORS = 0x1F1
MAGIC, VERSION = 0x202, 0x206
PAYLOAD = 0x248
# of the boot protocol, the first that says where the payload is
SINCE = 0x208
XZ = b"\xfd7zXZ\0"


def unpacked(image: bytes) -> bytes:
    """The ELF file in a bzImage that is packed by xz; any other file as it is.

    QEMU, Xen and libxl take both. Under emulation xz takes several seconds of each boot of a bed or a guest; zstd,
    which Debian 13 has, is quick.
    """
    if len(image) < PAYLOAD + 8 or image[MAGIC : MAGIC + 4] != b"HdrS":
        return image
    [version] = struct.unpack_from("<H", image, VERSION)
    if version < SINCE:
        return image
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    # the boot sector comes before the setup
    start = ((image[SETUP_SECTORS] or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    if not payload.startswith(XZ):
        return image
    # behind the data is its size, of 4 bytes, which one LZMADecompressor leaves alone
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
