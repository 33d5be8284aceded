# SPDX-License-Identifier: LGPL-2.1-only
"""Chains of images: what they are made of (xenblk chain), and whether they are sound (xenblk check). By vhd-util."""

import json
import os
import stat
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from xenblk import config, guestdisks
from xenblk.errors import UsageError, UserError
from xenblk.table import human, render

# More than any tapdisk opens (tapdisk-c/vhd/vhd.h, VHD_MAX_CHAIN): a chain that runs in a circle ends here
_MAX_DEPTH = 64


@dataclass(frozen=True)
class Image:
    """One image of a chain. Sizes in bytes: of the disk, and of what the image takes on its file system."""

    path: str
    type: str
    virtual_size: int
    physical_size: int
    hidden: bool


def images_of(place: str, vdevs: list[str]) -> list[str]:
    """The VHDs that a command line names: a path (with a / in it, or .vhd at its end), or a guest and, if not all, its disks. Raises UserError."""
    if "/" in place or place.endswith(".vhd"):
        if vdevs:
            raise UsageError(f"{place} is an image; name a disk only after a guest")
        return [place]
    try:
        images = [str(disk.image) for disk in guestdisks.named(place, vdevs)]
    except UserError as error:
        if os.path.exists(place):
            raise UserError(f"{error}; the file of that name is ./{place}") from None
        raise
    vhds = [image.removeprefix("vhd:") for image in images if image.startswith("vhd:")]
    if not vhds:
        raise UserError(f"guest {place}: has no VHD there, but {', '.join(images)}")
    return vhds


def _vhd_util(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    vhd_util = os.environ.get("XENBLK_VHD_UTIL", config.VHD_UTIL)
    try:
        return subprocess.run([vhd_util, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"{vhd_util}: {error.strerror}; install xenblk completely") from None


def _query(path: str) -> dict[str, Any]:
    done = _vhd_util("query", "-n", path, "--json")
    if done.returncode:
        raise UserError(os.fsdecode(done.stderr).strip().removeprefix("vhd-util: ") or f"{path}: can't be read")
    found: dict[str, Any] = json.loads(os.fsdecode(done.stdout))
    return found


def _raw(path: str) -> Image:
    """A raw image, in a file or on a block device."""
    size = os.stat(path)
    if not stat.S_ISBLK(size.st_mode):
        return Image(path, "raw", size.st_size, size.st_blocks * 512, False)
    with open(path, "rb") as device:
        end = device.seek(0, os.SEEK_END)
    return Image(path, "raw", end, end, False)


def read(path: str) -> list[Image]:
    """The chain of a VHD, the leaf first. Takes no lock. Raises UserError for an image that can't be read."""
    images: list[Image] = []
    parent: str | None = path
    while parent is not None:
        if len(images) == _MAX_DEPTH:
            raise UserError(f"{path}: its chain has more than {_MAX_DEPTH} images; see that no parent names a child")
        found = _query(parent)
        images.append(
            Image(parent, found["type"], found["virtual_size"], found["physical_size"], bool(found["hidden"]))
        )
        if found["parent_raw"]:
            images.append(_raw(found["parent"]))
            break
        parent = found["parent"] if found["type"] == "differencing" else None
    return images


def show(place: str, vdevs: list[str], *, as_json: bool) -> None:
    """xenblk chain. Raises UserError."""
    chains = [read(path) for path in images_of(place, vdevs)]
    if as_json:
        print(json.dumps([[asdict(image) for image in chain] for chain in chains], indent=2))
        return
    rows = [
        [str(depth), human(image.virtual_size), human(image.physical_size), image.type, image.path]
        for chain in chains
        for depth, image in enumerate(chain)
    ]
    print(render(("DEPTH", "SIZE", "TAKES", "TYPE", "IMAGE"), rows, right={"DEPTH", "SIZE", "TAKES"}), end="")


def check(place: str, vdevs: list[str], *, as_json: bool) -> None:
    """xenblk check: every image of each chain. Raises UserError if one isn't sound, when all have been looked at."""
    reports = []
    for path in images_of(place, vdevs):
        done = _vhd_util("check", "-n", path, "-p", "--json")
        try:
            reports.append(json.loads(os.fsdecode(done.stdout)))
        except ValueError:
            why = os.fsdecode(done.stderr).strip().removeprefix("vhd-util: ")
            raise UserError(why or f"{path}: vhd-util check ended with status {done.returncode}") from None
    if as_json:
        print(json.dumps(reports, indent=2))
    for report in reports:
        if not as_json:
            _print_report(report)
    bad = [str(report["image"]) for report in reports if report["status"] != "valid"]
    if bad:
        raise UserError(f"{', '.join(bad)}: not sound; see vhd-util(8), check and repair")


def _print_report(report: dict[str, Any]) -> None:
    for checked in report["checked"]:
        for warning in checked["warnings"]:
            print(f"{checked['image']}: {warning}")
    if report["status"] == "valid":
        print(f"{report['image']}: valid, {len(report['checked'])} images")
    else:
        print(f"{report['image']}: {report['status']}: {report['error']}")
