# SPDX-License-Identifier: LGPL-2.1-only
"""Disk specs: what is rewritten or refused, and that nothing else changes. Each libxlutil is the judge of its release."""

import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenblk import config, diskspec, libxl
from xenblk.errors import UserError

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("grammar")]

REPLACED = {"pdev_path", "format", "script", "backend"}


@pytest.fixture(autouse=True, scope="module")
def images_exist() -> Iterator[None]:
    """Every path is an image, but for the tests that make their own."""
    with mock.patch.object(diskspec, "_file_mode", return_value=0o100600):
        yield


def configured(**values: Any) -> Any:
    """xenblk.yaml has these settings."""
    return mock.patch.object(config, "load", return_value=config.Config(**values))


@pytest.fixture(autouse=True, scope="module")
def defaults() -> Iterator[None]:
    """There is no xenblk.yaml, but for the tests that have settings of their own."""
    with configured():
        yield


def kept(spec: str) -> dict[str, Any]:
    """What libxlutil makes of a spec, without the fields that the rewriting is about."""
    return {key: value for key, value in libxl.parse_disk(spec).items() if key not in REPLACED}


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("tap2:vhd:/a.vhd,xvda,w", "vhd:/a.vhd"),
        ("tap:vhd:/a.vhd,xvda,w", "vhd:/a.vhd"),
        ("tap:tapdisk:vhd:/a.vhd,xvda,r", "vhd:/a.vhd"),
        ("tap2:tapdisk:vhd:/a.vhd,xvda,w", "vhd:/a.vhd"),
        ("tapdisk:vhd:/a.vhd,xvda,w", "vhd:/a.vhd"),
        ("vhd:tap:/a.vhd,xvda,w", "vhd:/a.vhd"),
        ("tap:/a.vhd,xvda,w,format=vhd", "vhd:/a.vhd"),
        ("tap:aio:/a.img,xvda,w", "aio:/a.img"),
        ("tap2:aio:/a.img,xvda,w", "aio:/a.img"),
        ("tap:raw:/a.img,xvda,w", "aio:/a.img"),
        ("tap:/a.img,xvda", "aio:/a.img"),
        ("  tap2:vhd:/a.vhd, xvda, w", "vhd:/a.vhd"),
        ("vdev=xvda,access=r,tap2:vhd:/a.vhd", "vhd:/a.vhd"),
        ("tap2:vhd:/a:b.vhd,xvda,w", "vhd:/a:b.vhd"),
        ("tap2:vhd:/a b.vhd,xvda:disk,w", "vhd:/a b.vhd"),
        ("tap2:vhd:vdev=xvda,access=w,target=/a,b=c.vhd", "vhd:/a,b=c.vhd"),
        ("tap2:vhd:vdev=xvda,target=/a.vhd,,", "vhd:/a.vhd,"),
        ("tap2:vhd:/'\"\\.vhd,xvda,w", "vhd:/'\"\\.vhd"),
        ("tap2:vhd:/ü\udcff.vhd,xvda,w", "vhd:/ü\udcff.vhd"),
        ("tap:vhd:/a.vhd,xvda,w,backendtype=tap", "vhd:/a.vhd"),
        ("/a.vhd,vhd,xvda,w,backendtype=tap", "vhd:/a.vhd"),
        ("backendtype=tap,format=vhd,vdev=xvda,target=/a.vhd", "vhd:/a.vhd"),
        ("backendtype=tap,vdev=xvda,access=r,target=/a=b,c", "aio:/a=b,c"),
        ("file:/a.img,xvda,w,backendtype=tap", "aio:/a.img"),
        ("phy:/dev/a,xvda,w,backendtype=tap", "aio:/dev/a"),
        # a VHD by its name, raw by what is said
        ("tap2:aio:/a.vhd,xvda,w", "aio:/a.vhd"),
        ("tap:raw:/a.vhd,xvda,w", "aio:/a.vhd"),
        ("/a.vhd,raw,xvda,w,backendtype=tap", "aio:/a.vhd"),
        ("backendtype=tap,format=raw,vdev=xvda,target=/a.vhd", "aio:/a.vhd"),
        ("tap2:vhd:/a.vhd,xvda,w,discard,direct-io-safe,backend=dd,specification=xen", "vhd:/a.vhd"),
        ("tap2:vhd:/a.vhd,xvda,w,no-discard,colo,colo-host=h,colo-port=4,colo-export=e", "vhd:/a.vhd"),
        ("tap2:vhd:/a.vhd,xvda,w,active-disk=/x,hidden-disk=/y,no-colo", "vhd:/a.vhd"),
    ],
)
def test_tap_disks_get_the_script_and_keep_the_rest(spec: str, target: str) -> None:
    disk = diskspec.read(spec)
    after = libxl.parse_disk(disk.rewritten)
    assert after["pdev_path"] == target == f"{disk.driver}:{disk.path}"
    assert after["script"] == "block-xenblk"
    assert after["format"] == "raw"
    assert "backend" not in after
    assert kept(disk.rewritten) == kept(spec)
    assert disk.vdev == after["vdev"]


# The forms of xl-disk-configuration(5) and of Xen's own check of it, tools/xl/check-xl-disk-parse
DOCUMENTED = [
    "/dev/vg/guest-volume,,hda",
    "/dev/vg/guest-volume,raw,hda,rw",
    "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
    "raw:/dev/vg/guest-volume,hda,w",
    "backendtype=phy,vdev=xvdb,access=w,target=/dev/vg/guest-volume",
    "discard,vdev=hda,target=/some/disk/image.raw",
]
OTHERS = [
    "/root/image.iso,,hdc,cdrom",
    "/root/image.iso,,hdc,,cdrom",
    "/root/image.iso,raw,hdc,devtype=cdrom",
    "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
    "raw:/root/image.iso,hdc:cdrom,ro",
    "cdrom,no-discard,vdev=hda,target=/some/disk/image.iso",
    "devtype=cdrom,,,hdc",
    ",,hdc:cdrom,r",
    ",hdc:cdrom,r",
    "vdev=hdc,access=r,devtype=cdrom,target=",
    ",empty,hdc:cdrom,r",
    "vdev=hdc,access=r,devtype=cdrom,format=empty",
    "vdev=hdc,access=r,devtype=cdrom",
    "iscsi:iqn.2001-05.com.example:0-8a0906-23fe93404-c82797962054a96d-examplehost,xvda,w",
    "vdev=xvda,access=w,script=block-iscsi,target=iqn.2001-05.com.example:0-8a0906-23fe93404",
    "drbd:app01,hda,w",
]


def as_ours(spec: str) -> str:
    """With tapdisk as its backend: what follows target= would be part of the path."""
    spec = spec.replace("backendtype=phy,", "")
    return f"backendtype=tap,{spec}" if "target=" in spec else f"{spec},backendtype=tap"


@pytest.mark.parametrize("spec", DOCUMENTED + OTHERS)
def test_what_xen_documents_is_left_alone(spec: str) -> None:
    libxl.parse_disk(spec)
    assert diskspec.read(spec).rewritten == spec


@pytest.mark.parametrize("spec", DOCUMENTED)
def test_what_xen_documents_of_hard_disks_is_said_of_ours_in_the_same_way(spec: str) -> None:
    before = libxl.parse_disk(spec)
    disk = diskspec.read(as_ours(spec))
    assert (disk.driver, disk.path) == ("aio", before["pdev_path"])
    assert kept(disk.rewritten) == {key: value for key, value in before.items() if key not in REPLACED}


@pytest.mark.parametrize("spec", [spec for spec in OTHERS if "cdrom" in spec])
def test_what_tapdisk_can_not_be_of_xens_documented_disks_is_refused(spec: str) -> None:
    with pytest.raises(UserError):
        diskspec.read(as_ours(spec))


def test_the_form_is_the_one_in_the_manual() -> None:
    assert diskspec.read("tap2:vhd:/a,xvda,w,discard,direct-io-safe,backend=d").rewritten == (
        "format=raw,script=block-xenblk,vdev=xvda,access=w,backend=d,direct-io-safe,discard,target=vhd:/a"
    )


@pytest.mark.parametrize(
    "spec",
    [
        "/a.vhd,vhd,xvda,w",
        "vhd:/a.vhd,xvda,w",
        "phy:/dev/vg/tap:vhd:lv,xvda,w",
        "file:/a,xvda,w",
        "vdev=xvda,target=tap2:vhd:/a",
        "script=block-tap,vdev=xvda,target=tap:vhd:/a.vhd",
        "format=raw,script=block-xenblk,vdev=xvda,access=w,target=vhd:/a.vhd",
        "backendtype=tap,script=block-tap,vdev=xvda,target=vhd:/a.vhd",
        "backendtype=tap,nbd:/a,xvda",
        "backendtype=qdisk,format=vhd,vdev=xvda,target=/a.vhd",
        ",,hdc:cdrom",
        "script=tap:x,vdev=xvda,target=/a",
    ],
)
def test_other_disks_are_left_alone(spec: str) -> None:
    disk = diskspec.read(spec)
    assert (disk.rewritten, disk.driver, disk.path) == (spec, None, None)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("tap:qcow:/a,xvda,w", "tapdisk can't serve qcow; for QEMU write it without tap, with format=qcow,"),
        ("tap2:qcow2:/a,xvda,w", "tapdisk can't serve qcow2"),
        ("tap:/a,xvda,w,format=qed", "tapdisk can't serve qed"),
        ("tap:ioemu:/a,xvda,w", "ioemu: and tap: name two backends"),
        ("tap:phy:/dev/a,xvda,w", "phy: and tap: name two backends"),
        ("tap:iscsi:/a,xvda,w", "iscsi: and tap: name two backends"),
        ("tap2:nbd:host:10809,xvda,w", "the image lock doesn't reach an NBD server, so another host"),
        ("/a,qcow2,xvda,w,backendtype=tap", "tapdisk can't serve qcow2"),
        ("backendtype=tap,cdrom,vdev=hdc,target=/a", "tapdisk has no CD-ROM drives"),
        ("a.vhd,vhd,xvda,w,backendtype=tap", "the path a.vhd must start with /"),
        ("tap:vhd:/a,xvda,w,script=block-x", "script=block-x and tap: name two backends"),
        ("tap:vhd:/a,xvda,w,backendtype=qdisk", "backendtype=qdisk and tap: name two backends"),
        ("tap:aio:/a,xvda,w,backendtype=phy", "backendtype=phy and tap: name two backends"),
        ("tap:aio:/a,hdc:cdrom,r", "tapdisk has no CD-ROM drives"),
        ("tap:,hdc,r,cdrom", "tapdisk has no CD-ROM drives"),
        ("tap2:vhd:a.vhd,xvda,w", "the path a.vhd must start with /"),
        ("tap2:ram:64,xvda,w", "what is in tapdisk's memory is lost whenever the guest reboots; put a file on a tmpfs"),
        ("tap2:null:64,xvda,w", "a guest's disk can't have driver null; it can have aio and vhd"),
        (
            "tap2:vdev=xvda,target=vhd:/srv/a.vhd",
            "the path vhd:/srv/a.vhd must start with /; begin the disk with tap2:vhd:",
        ),
        ("tap2:remus:h:9000|vhd:/a.vhd,xvda,w", "images can't be put before others with |; name the image itself"),
        ("tap2:vdev=xvda,/a\nb.vhd,w", "the path has a control character, such as a line break"),
        ("tap2:/a.vhd,xvda,w", "/a.vhd: by its name a VHD, and nothing says what it is"),
        ("tap:/A.VHD,xvda,r", "/A.VHD: by its name a VHD"),
        ("backendtype=tap,vdev=xvda,target=/a.vhd", "/a.vhd: by its name a VHD"),
    ],
)
def test_what_tapdisk_cannot_do_is_refused_with_the_reason(spec: str, reason: str) -> None:
    with pytest.raises(UserError) as error:
        diskspec.read(spec)
    assert str(error.value).startswith(f"disk '{spec}': {reason}")


@pytest.mark.parametrize(
    "spec", ["tap2:ram:/x,xvda,w", "tap2:vdi:/a,xvda,w", "tap3:vhd:/a,xvda,w", "tap2:vhd:/a,xvda,w!", "tap2:vhd:/a", ""]
)
def test_what_libxlutil_refuses_stays_refused(spec: str) -> None:
    with pytest.raises(libxl.GrammarError):
        diskspec.read(spec)


CLAIMED = ["vhd:/a.vhd,xvda,w", "/a.vhd,vhd,xvda,r", "format=vhd,vdev=xvda,target=/a,b", "file:vhd:/a.vhd,xvda,w"]


def test_what_can_not_be_parsed_is_ours_in_doubt() -> None:
    """xl may be newer than our libxlutil; a VHD is ours if the configuration says so."""
    for claim, text, ours in ((False, b"tap2:/a", True), (False, b"vhd:/a", False), (True, b"/a,vhd", True), (True, b"/a", False)):
        with configured(claim_vhd=claim):
            assert diskspec.may_be_ours(text) == ours


@pytest.mark.parametrize("spec", CLAIMED)
def test_a_vhd_is_tapdisks_where_the_configuration_says_so(spec: str) -> None:
    assert diskspec.read(spec).driver is None
    with configured(claim_vhd=True):
        disk = diskspec.read(spec)
    assert (disk.driver, disk.path) == ("vhd", libxl.parse_disk(spec)["pdev_path"])
    assert kept(disk.rewritten) == kept(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "/a.img,raw,xvda,w",
        "phy:/dev/a,xvda,w",
        "ioemu:vhd:/a.vhd,xvda,w",
        "vhd:/a.vhd,xvda,w,backendtype=qdisk",
        "vhd:/a.vhd,xvda,w,script=block-x",
        "vhd:/a.vhd,hdc:cdrom,r",
    ],
)
def test_nothing_else_is_taken_for_a_vhd_of_tapdisks(spec: str) -> None:
    with configured(claim_vhd=True):
        disk = diskspec.read(spec)
    assert (disk.rewritten, disk.driver) == (spec, None)


def test_a_missing_image_is_named() -> None:
    with mock.patch.object(diskspec, "_file_mode", side_effect=FileNotFoundError(2, "No such file or directory")):
        with pytest.raises(UserError, match="No such file or directory; correct the path or make the image"):
            diskspec.read("tap2:vhd:/a.vhd,xvda,w")
        with pytest.raises(UserError, match="images can't be put before others"):
            diskspec.read("tap2:vhd:/a.vhd|vhd:/b.vhd,xvda,w")
        # what a driver domain has can't be seen from here
        assert diskspec.read("tap2:vhd:/a.vhd,xvda,w,backend=storage").driver == "vhd"


def test_an_image_is_a_file_or_a_block_device() -> None:
    refused = pytest.raises(UserError, match="/srv: neither a regular file nor a block device")
    with mock.patch.object(diskspec, "_file_mode", return_value=0o040755), refused:
        diskspec.read("tap2:vhd:/srv,xvda,w")


def test_a_field_of_a_newer_libxl_is_not_lost() -> None:
    fields = libxl.parse_disk("tap2:vhd:/a,xvda,w") | {"multipath": 3}
    refused = pytest.raises(UserError, match="disk field multipath=3 that xenblk doesn't know")
    with mock.patch.object(libxl, "parse_disk", return_value=fields), refused:
        diskspec.read("tap2:vhd:/a,xvda,w")


def test_a_rewritten_disk_that_libxl_reads_differently_is_refused() -> None:
    writable = "format=raw,script=block-xenblk,vdev=xvda,target=vhd:/a"
    refused = pytest.raises(UserError, match="readwrite can't be carried over")
    with mock.patch.object(diskspec, "_compose", return_value=writable), refused:
        diskspec.read("tap2:vhd:/a,xvda,r")


TEXT = st.characters(blacklist_categories=("Cs", "Cc"))
PATHS = st.text(TEXT, max_size=30).map(lambda text: "/" + text)
OPTIONS = st.lists(
    st.sampled_from(
        "discard;no-discard;direct-io-safe;backend=dom;specification=xen;access=r;access=w;devtype=disk;colo;no-colo;"
        "colo-port=7;backendtype=tap;active-disk=/x y; discard".split(";")
    ),
    unique=True,
    max_size=5,
)


@given(
    stack=st.lists(st.sampled_from(["tap:", "tap2:", "tapdisk:", "aio:"]), min_size=1, max_size=4),
    vhd=st.booleans(),
    vdev=st.sampled_from(["xvda", "hdb", "sdc", "xvdz9", "d5p3"]),
    options=OPTIONS,
    path=PATHS,
)
def test_any_tap_disk_keeps_its_fields(stack: list[str], vhd: bool, vdev: str, options: list[str], path: str) -> None:
    spec = "".join(stack) + ("vhd:" if vhd else "") + ",".join([f"vdev={vdev}", *options]) + f",target={path}"
    disk = diskspec.read(spec)
    if not {"tap:", "tap2:", "tapdisk:"}.intersection(stack) and "backendtype=tap" not in options:
        assert disk.rewritten == spec
        return
    after = libxl.parse_disk(disk.rewritten)
    driver = "vhd" if vhd else "aio"
    assert after["pdev_path"] == f"{driver}:{libxl.parse_disk(spec)['pdev_path']}"
    assert kept(disk.rewritten) == kept(spec)


FRAGMENTS = "tap2: vhd: aio: raw: phy: file: , , = target= vdev=xvda xvda format=vhd format=raw /a / w r".split(" ")
FRAGMENTS += "access=r;discard;script=x;backend=d;x;5; ;\n;\t".split(";")


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_a_prefix_is_found_exactly_where_libxlutil_drops_it(spec: str) -> None:
    """libxlutil keeps every text but the prefixes in some field, so what it dropped can be counted."""
    spec = re.sub("=\n+", "=", spec)  # ends the process: "flex scanner jammed"
    for text in (spec, f"tap2:{spec},vdev=xvda", f"vdev=xvda,{spec}"):
        try:
            fields = libxl.parse_disk(text)
        except libxl.GrammarError:
            continue
        in_fields = sum(value.count("tap2:") for value in fields.values() if isinstance(value, str))
        assert diskspec.prefixes(text).count("tap2") == text.count("tap2:") - in_fields


# The vocabulary of xl-disk-configuration(5), and of libxlu_disk_l.l where that has more: of each line, one or none
PREFIXES = ["tap:", "tap2:", "tapdisk:", "vhd:", "raw:", "qcow2:", "aio:", "ioemu:", "file:", "phy:", "nbd:", "ram:"]
PREFIXES += ["x1:"]
TARGETS = ["/a.vhd", "/dev/vg/lv", "/a b:c", "/a'b\"c\\d", "a.vhd", "", "ram:64", "remus:h:1|vhd:/b", "vhd:/a"]
CHOICES = [
    ["format=vhd", "format=raw", "format=qed", "format=", "format=bogus"],
    ["access=r", "access=rw", "access=", "access=w!"],
    ["cdrom", "devtype=cdrom", "devtype=disk"],
    ["backendtype=tap", "backendtype=phy", "backendtype=qdisk", "backendtype=vbd3"],
    ["backend=d"],
    ["specification=xen", "specification=virtio"],
    ["script=block-x"],
    ["direct-io-safe"],
    ["discard", "no-discard"],
    ["colo", "no-colo"],
    ["colo-port=7", "active-disk=/x y"],
    ["trusted", "untrusted"],
    ["grant_usage=1", "grant_usage=0"],
    ["bogus=1", "w", "vhd", ""],
]


@st.composite
def specs(draw: st.DrawFn) -> str:
    """Disk specs, most of them valid."""
    stack = "".join(draw(st.lists(st.sampled_from(PREFIXES), max_size=3)))
    option = st.sampled_from(CHOICES).flatmap(lambda choices: st.sampled_from(choices))
    options = draw(st.lists(option, max_size=4, unique=True))
    target = draw(st.sampled_from(TARGETS))
    if draw(st.booleans()):
        words = ["vdev=xvda", *options, f"target={target}"]
    else:
        image_format: list[str] = [] if stack else [draw(st.sampled_from(["", "raw", "vhd", "qcow2"]))]
        positional = [target, *image_format, draw(st.sampled_from(["xvda", "hdc:cdrom", "sdb:disk"]))]
        words = [*options, *positional] if draw(st.booleans()) else [*positional, *options]
    return stack + draw(st.sampled_from([",", ", "])).join(words)


@settings(max_examples=400)
@given(spec=specs(), claim=st.booleans())
def test_what_xl_accepts_means_the_same_or_is_refused_with_a_reason(spec: str, claim: bool) -> None:
    try:
        before = libxl.parse_disk(spec)
    except libxl.GrammarError:
        with pytest.raises(libxl.GrammarError):
            diskspec.read(spec)
        return
    try:
        with configured(claim_vhd=claim):
            disk = diskspec.read(spec)
    except UserError as error:
        assert str(error).startswith(f"disk '{spec}': ")
        assert diskspec.TAP_PREFIXES.intersection(diskspec.prefixes(spec)) or before.get("backend") == "tap" or claim
        return
    if disk.driver is None:
        assert disk.rewritten == spec
        return
    after = libxl.parse_disk(disk.rewritten)
    assert kept(disk.rewritten) == kept(spec)
    assert after["pdev_path"] == f"{disk.driver}:{before['pdev_path']}"
    assert disk.driver == {"raw": "aio", "vhd": "vhd"}[before["format"]]
