# SPDX-License-Identifier: LGPL-2.1-only
"""Images as libvhdi reads them."""

import importlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MIB = 1 << 20


def read(images: Sequence[Path], block_size: int = 2 * MIB) -> bytes:
    """All of the disk that the last of `images` is, a child of the one before it, and so on.

    A block a time: libvhdi 20210425 takes what follows a block that ends in absent sectors for absent, too.
    """
    opened: list[Any] = []
    try:
        for image in images:
            opened.append(importlib.import_module("pyvhdi").file())
            opened[-1].open(str(image))
        for parent, child in itertools.pairwise(opened):
            child.set_parent(parent)
        size = opened[-1].get_media_size()
        return b"".join(
            bytes(opened[-1].read_buffer_at_offset(min(block_size, size - start), start))
            for start in range(0, size, block_size)
        )
    finally:
        for file in reversed(opened):
            file.close()
