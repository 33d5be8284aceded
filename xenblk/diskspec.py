# SPDX-License-Identifier: LGPL-2.1-only
"""Disk specs (xl-disk-configuration(5)): which ones are tapdisk's, and the form in which libxl can carry them.

libxl throws the prefixes tap:, tap2: and tapdisk: away and hands the image to QEMU, whose vpc driver reads a
differencing VHD as empty and writes into it. backendtype=tap it refuses (up to 4.18), or waits for a daemon of that
name. So such a disk, and any VHD if xenblk.yaml says so, becomes a disk with a block script, which
every libxl since 4.7 takes: `format=raw,script=block-xenblk,vdev=...,access=...,...,target=vhd:/path`.
"""

import os
import re
import stat
from dataclasses import dataclass
from typing import Any

from xenblk import config, libxl, patience
from xenblk.errors import UserError

SCRIPT = "block-xenblk"
TAP_PREFIXES = frozenset({"tap", "tap2", "tapdisk"})
# Prefixes that mean nothing beside tap:, or name its driver; any other one contradicts it
DRIVER_PREFIXES = frozenset({"aio", "raw", "vhd", "qcow", "qcow2"})
DRIVERS = {"raw": "aio", "vhd": "vhd"}
# Prefixes that say nothing of who serves a VHD
VHD_PREFIXES = frozenset({"vhd", "raw", "aio", "file"})

# What the first blktap2 had, and is a file name or a script for xl today
_GONE = {
    "ram": "what is in tapdisk's memory is lost whenever the guest reboots; put a file on a tmpfs and name it with "
    "tap2:aio:",
    "nbd": "the image lock doesn't reach an NBD server, so another host could write there too; start it with "
    "tap-ctl create -a nbd:... and give the guest phy:/dev/xen/blktap-2/tapdev<minor>",
    "|": "images can't be put before others with |; name the image itself, with tap2:vhd:",
}

_CHAINED = re.compile(r"\|[a-z][a-z0-9]*:")
_SAYS_RAW = re.compile(r"(^|[,=: \t])(raw|aio)([,: \t]|$)")

# The scanner's rules that matter in a valid spec, from tools/libs/util/libxlu_disk_l.l of Xen: the longest match wins,
# then the first; group 1 is what is eaten, the rest is trailing context. In a valid spec a flag ends where a positional
# parameter would.
_RULES = [
    ("space", re.compile(r"([ \t\n]+)(?:[^ \t\n].*)?")),
    ("target", re.compile(r"(target=.*)")),
    ("named", re.compile(r"((?!target=)[a-z][-_a-z0-9]*=[^,]*,?)")),
    ("prefix", re.compile(r"((?:raw|qcow2?|vhd|iscsi|e?nbd|drbd|tapdisk|tap2?|aio|ioemu|file|phy):).*")),
    ("positional", re.compile(r"([^=,]*,|[^=,]+,?)")),
]

# Fields of libxl_device_disk that the rewritten spec sets anew
_REPLACED = frozenset({"pdev_path", "format", "script", "backend"})
# The others, by the words that set them
_NAMED = {
    "vdev": "vdev",
    "backend_domname": "backend",
    "specification": "specification",
    "colo_host": "colo-host",
    "colo_port": "colo-port",
    "colo_export": "colo-export",
    "active_disk": "active-disk",
    "hidden_disk": "hidden-disk",
}
_FLAGS = {
    ("direct_io_safe", True): "direct-io-safe",
    ("discard_enable", "True"): "discard",
    ("discard_enable", "False"): "no-discard",
    ("colo_enable", "True"): "colo",
    ("colo_enable", "False"): "no-colo",
    ("trusted", "True"): "trusted",
    ("trusted", "False"): "untrusted",
    ("grant_usage", "True"): "grant_usage=1",
    ("grant_usage", "False"): "grant_usage=0",
}


@dataclass(frozen=True)
class Disk:
    """One disk of a guest. driver and path are None, and rewritten is spec, if tapdisk has no part in it.

    spec: its parts, if there are several, with a space between them. local: it is served on this host, not in a driver
    domain. foreign: what the disk may be that isn't tapdisk's: files that are there. scripted: it has our script already.
    """

    spec: str
    vdev: str
    rewritten: str
    driver: str | None = None
    path: str | None = None
    readonly: bool = False
    local: bool = True
    foreign: tuple[str, ...] = ()
    scripted: bool = False


def prefixes(spec: str) -> list[str]:
    """The deprecated prefixes of a spec that libxlutil accepts, in their order: tap:tapdisk:vhd:/x has three."""
    found = []
    at = 0
    while at < len(spec):
        matches = [(rule, match) for rule, regex in _RULES if (match := regex.match(spec, at))]
        if not matches:  # a = at the very end, which libxlutil passes over
            break
        rule, match = max(matches, key=lambda item: item[1].end())
        if rule == "prefix":
            found.append(match[1][:-1])
        at = match.end(1)
    return found


def read(*parts: str) -> Disk:
    """What is to become of a disk, whose spec is one text or, for xl block-attach, several.

    Raises libxl.GrammarError if xl would refuse the spec, UserError if tapdisk is asked for what it can't do.
    """
    spec = " ".join(parts)
    fields = libxl.parse_disk(*parts)
    used = frozenset(prefix for part in parts for prefix in prefixes(part))
    if not TAP_PREFIXES & used and not _taken(fields, used):
        return _foreign_disk(spec, fields)
    try:
        return _tap_disk(spec, fields, used)
    except UserError as error:
        raise UserError(f"disk '{spec}': {error}") from None


def may_be_ours(text: bytes) -> bool:
    """By the text alone, where it can't be parsed: it may have a disk that is tapdisk's."""
    return b"tap" in text or (b"vhd" in text and config.load().claim_vhd)


def _taken(fields: dict[str, Any], used: frozenset[str]) -> bool:
    """A disk without tap: that is tapdisk's nevertheless."""
    if fields.get("script"):
        return False
    if fields.get("backend") == "tap":
        return True
    vhd = fields.get("format") == "vhd" and "backend" not in fields and not fields.get("is_cdrom")
    return vhd and used <= VHD_PREFIXES and config.load().claim_vhd


def _is_local(fields: dict[str, Any]) -> bool:
    """This domain serves it."""
    return fields.get("backend_domname", "0") in ("0", "Domain-0")


def _from_here(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # the working directory is gone, and whatever it had
        return path


def _foreign_disk(spec: str, fields: dict[str, Any]) -> Disk:
    path = fields.get("pdev_path", "")
    # libxl takes it from here, Xen's scripts from /dev; what another script makes of its target is the script's business
    places = [_from_here(path), f"/dev/{path}"] if path and not fields.get("script") else []
    foreign = tuple(place for place in places if os.path.exists(place))
    return Disk(
        spec,
        fields.get("vdev", ""),
        spec,
        readonly=not fields.get("readwrite"),
        local=_is_local(fields),
        foreign=foreign,
        scripted=os.path.basename(fields.get("script", "")) == SCRIPT,
    )


def _tap_disk(spec: str, fields: dict[str, Any], used: frozenset[str]) -> Disk:
    if used & TAP_PREFIXES:
        if "nbd" in used:
            raise UserError(_GONE["nbd"])
        for prefix in sorted(used - TAP_PREFIXES - DRIVER_PREFIXES):
            raise UserError(f"{prefix}: and tap: name two backends; leave one of them out")
    if fields.get("script"):
        raise UserError(f"script={fields['script']} and tap: name two backends; leave one of them out")
    if fields.get("backend", "tap") != "tap":
        raise UserError(f"backendtype={fields['backend']} and tap: name two backends; leave one of them out")
    if fields.get("is_cdrom"):
        raise UserError("tapdisk has no CD-ROM drives; leave the tap out, and QEMU serves it")
    image_format = fields.get("format", "raw")
    driver = DRIVERS.get(image_format)
    if driver is None:
        raise UserError(
            f"tapdisk can't serve {image_format}; for QEMU write it without tap, "
            f"with format={image_format},backendtype=qdisk"
        )
    path = fields.get("pdev_path", "")
    local = _is_local(fields)
    _check_path(path, local)
    if driver == "aio" and path.lower().endswith(".vhd") and not _SAYS_RAW.search(spec):
        raise UserError(
            f"{path}: by its name a VHD, and nothing says what it is, so it would be served raw; write tap2:vhd:{path} for "
            f"a VHD, tap2:aio:{path} for a raw image"
        )
    rewritten = _compose(fields, f"{driver}:{path}")
    _check_same(fields, rewritten, f"{driver}:{path}")
    readonly = not fields.get("readwrite")
    return Disk(spec, fields.get("vdev", ""), rewritten, driver, path, readonly, local)


def _check_path(path: str, local: bool) -> None:
    """What can be seen without opening the image. An image in a driver domain can't be seen at all."""
    driver = re.match(r"[a-z][a-z0-9]*(?=:)", path)
    if driver and "|" in path:
        raise UserError(_GONE["|"])
    if driver and driver[0] in _GONE:
        raise UserError(_GONE[driver[0]])
    if driver and driver[0] in DRIVERS.values():
        raise UserError(f"the path {path} must start with /; begin the disk with tap2:{driver[0]}: instead")
    if driver:
        raise UserError(f"a guest's disk can't have driver {driver[0]}; it can have {' and '.join(DRIVERS.values())}")
    if not path.startswith("/"):
        raise UserError(f"the path {path or '(none)'} must start with /, since the block script runs elsewhere")
    if any(letter < " " or letter == "\x7f" for letter in path):
        raise UserError("the path has a control character, such as a line break, which xenstore and logs can't carry; rename the image")
    if not local:
        return
    try:
        mode = _file_mode(path)
    except OSError as error:
        if _CHAINED.search(path):
            raise UserError(_GONE["|"]) from None
        raise UserError(f"{path}: {error.strerror}; correct the path or make the image") from None
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise UserError(f"{path}: neither a regular file nor a block device; correct the path")


def _file_mode(path: str) -> int:
    return patience.asked(path, lambda: os.stat(path).st_mode)


def _compose(fields: dict[str, Any], target: str) -> str:
    """The rewritten spec. Raises UserError for a field that isn't known here, rather than lose it."""
    words = ["format=raw", f"script={SCRIPT}"]
    words += [f"{name}={fields[key]}" for key, name in _NAMED.items() if key in fields]
    words.insert(3, f"access={'w' if fields.get('readwrite') else 'r'}")
    for key in fields.keys() - _REPLACED - _NAMED.keys() - {"readwrite"}:
        word = _FLAGS.get((key, fields[key]))
        if word is None:
            raise UserError(f"this libxl has a disk field {key}={fields[key]} that xenblk doesn't know; update xenblk")
        words.append(word)
    words[4:] = sorted(words[4:])
    # The last parameter, which alone may hold commas. libxlutil takes one comma off its end.
    return ",".join(words) + f",target={target}" + ("," if target.endswith(",") else "")


def _check_same(fields: dict[str, Any], rewritten: str, target: str) -> None:
    """libxlutil itself has the last word: it must read the rewritten spec as the same disk."""
    try:
        after = libxl.parse_disk(rewritten)
    except libxl.GrammarError as error:
        raise UserError(f"libxl refuses the form with script={SCRIPT}: {error}") from None
    wanted = {key: value for key, value in fields.items() if key not in _REPLACED}
    wanted |= {"pdev_path": target, "format": "raw", "script": SCRIPT}
    different = sorted(key for key in wanted.keys() | after.keys() if wanted.get(key) != after.get(key))
    if different:
        raise UserError(f"{', '.join(different)} can't be carried over to script={SCRIPT}; write it in another form")
