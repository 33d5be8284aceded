# SPDX-License-Identifier: LGPL-2.1-only
"""block-xenblk in a bed as libxl calls it, for a guest that there is not: in seconds, not half a minute."""

from tests.lib.vm import Bed, Result

NODE = "backend/vbd/77/51712"
SCRIPT = "/etc/xen/scripts/block-xenblk"


def write_node(bed: Bed, target: str, mode: str = "w", node: str = NODE) -> None:
    """What libxl writes before it calls the script."""
    keys = {"params": target, "mode": mode, "state": "2", "online": "1", "dev": "xvda", "script": SCRIPT}
    pairs = " ".join(f"{node}/{key} '{value}'" for key, value in keys.items())
    bed.run(f"xenstore-rm {node} 2>/dev/null; xenstore-write {pairs}")


def command(action: str, node: str = NODE) -> str:
    """The shell command that becomes the script."""
    return f"XENBUS_TYPE=vbd XENBUS_PATH={node} XENBUS_BASE_PATH=backend exec {SCRIPT} {action} </dev/null"


def add(bed: Bed, target: str, mode: str = "w", node: str = NODE) -> Result:
    """Adds a disk; stdout is hotplug-error if it fails."""
    write_node(bed, target, mode, node)
    return bed.run(f"({command('add', node)}) || {{ xenstore-read {node}/hotplug-error; exit 1; }}", check=False)


def remove(bed: Bed, node: str = NODE) -> None:
    """Removes a disk, and its node as libxl does."""
    bed.run(f"({command('remove', node)}) && xenstore-rm {node.rpartition('/')[0]}")


def refused(bed: Bed, target: str, mode: str = "w", node: str = NODE) -> str:
    """Why a disk is refused, one line."""
    result = add(bed, target, mode, node)
    remove(bed, node)
    assert result.status != 0, f"{target} ({mode}) was served"
    assert result.stdout.count("\n") == 1
    return result.stdout.rstrip("\n")
