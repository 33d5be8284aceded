# SPDX-License-Identifier: LGPL-2.1-only
"""The front of xl with a plain tap2 disk for block-attach: it gives Xen's xl what xenblk would have, or leaves it to xenblk."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lib import front
from tests.lib.front import Front

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("libxl_binding")]


@dataclass(frozen=True)
class Host:
    """The front on a host whose settings have been applied, and an image."""

    front: Front
    image: Path

    def attach(self, *words: str, status: int = 0) -> list[str] | None:
        """What Xen's xl gets at once, None if xenblk is asked. status: tap-ctl's."""
        where = {"XENBLK_YAML": str(self.front.root / "yaml"), "XENBLK_CONFIG": str(self.front.root / "flat")}
        # as the real one, that finds no image where there is none
        probe = f'[ -e "${{3#*:}}" ] || exit 1; exit {status}'
        result = self.front.run(*words, FAKE=f'[ "$name" != tap-ctl ] || {{ {probe}; }}', **where)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        asked, got = self.front.given("xenblk"), self.front.given("xl")
        assert (asked is None) != (got is None)
        assert asked in (None, ["xl", *words])
        return got


@pytest.fixture
def host(tmp_path: Path) -> Host:
    xl = front.install(tmp_path)
    (tmp_path / "sbin/tap-ctl").write_text(front.FAKE, encoding="utf-8")
    (tmp_path / "sbin/tap-ctl").chmod(0o755)
    xl.write("yaml", "version: 1\n")
    time.sleep(0.02)
    xl.write("flat", "version=1\n")
    image = tmp_path / "a.vhd"
    image.write_bytes(bytes(512))
    return Host(xl, image)


@pytest.mark.parametrize("tap", ["tap2", "tap", "tapdisk", "tap:tapdisk", "tap2:tapdisk"])
@pytest.mark.parametrize("driver", ["vhd", "aio"])
@pytest.mark.parametrize("mode", ["w", "r"])
def test_a_plain_disk_goes_to_xl_at_once(host: Host, tap: str, driver: str, mode: str) -> None:
    from xenblk import diskspec  # noqa: PLC0415 # its binding is the fixture's

    spec = f"{tap}:{driver}:{host.image},xvdb,{mode}"
    rewritten = f"format=raw,script=block-xenblk,vdev=xvdb,access={mode},target={driver}:{host.image}"
    assert host.attach("block-attach", "guest", spec) == ["block-attach", "--", "guest", rewritten]
    assert diskspec.read(spec).rewritten == rewritten
    assert host.front.given("tap-ctl") == ["probe", "-a", f"{driver}:{host.image}", *(["-R"] if mode == "r" else [])]


@pytest.mark.parametrize(("vdev", "access"), [("xvdaa", "rw"), ("sdb", "ro"), ("hdc", ""), ("xvda1", "r"), ("sdaa15", "w")])
@pytest.mark.parametrize("together", [True, False])
def test_so_do_other_names_and_words_apart(host: Host, vdev: str, access: str, together: bool) -> None:
    from xenblk import diskspec  # noqa: PLC0415 # as above

    words = [word for word in (f"tap2:vhd:{host.image}", vdev, access) if word]
    words = [",".join(words)] if together else words
    rewritten = diskspec.read(*words).rewritten
    assert f"vdev={vdev},access={'r' if 'r' in access and 'w' not in access else 'w'}," in rewritten
    assert host.attach("block-attach", "guest", *words) == ["block-attach", "--", "guest", rewritten]


def test_options_of_xl_itself_are_kept(host: Host) -> None:
    got = host.attach("-vv", "block-attach", "7", f"tap2:vhd:{host.image},xvdb,w")
    assert got and got[:4] == ["-vv", "block-attach", "--", "7"]


@pytest.mark.parametrize(
    "words",
    [
        ["guest", "tap2:vhd:{image},xvdb,w", "backend=other"],
        ["guest", "tap2:vhd:{image}", "xvdb", "w", ""],
        ["guest", "tap2:vhd:{image}", "", "xvdb", "w"],
        ["guest", "tap2:vhd:{image},", "xvdb", "w"],
        ["guest", "tap2:vhd:{image}", "xvdb,w", "script=x"],
        ["guest", "tap2:vhd:{image},xvdabc,w"],
        ["guest", "tap2:vhd:{image},xvda01,w"],
        ["guest", "tap2:vhd:{image},xvda123,w"],
        ["guest", "tap2:vhd:{image},xvd,w"],
        ["guest", "tap2:vhd:{image},vda,w"],
        ["guest", "tap2:vhd:{image},XVDA,w"],
        ["-h", "tap2:vhd:{image},xvdb,w"],
        ["tap2:vhd:{image},xvdb,w"],
        ["--", "guest", "tap2:vhd:{image},xvdb,w"],
        ["guest", "vdev=xvdb,tap2:vhd:{image}"],
    ],
)
def test_other_words_are_xenblks(host: Host, words: list[str]) -> None:
    assert host.attach("block-attach", *(word.format(image=host.image) for word in words)) is None


def test_an_image_that_can_not_be_opened_is_xenblks_to_explain(host: Host) -> None:
    assert host.attach("block-attach", "guest", f"tap2:vhd:{host.image},xvdb,w", status=1) is None


def test_settings_that_are_not_applied_are_xenblks_to_apply(host: Host) -> None:
    spec = f"tap2:vhd:{host.image},xvdb,w"
    assert host.attach("block-attach", "guest", spec)
    os.utime(host.front.root / "flat", (0, 0))
    assert host.attach("block-attach", "guest", spec) is None
    (host.front.root / "flat").unlink()
    assert host.attach("block-attach", "guest", spec) is None
    (host.front.root / "yaml").unlink()
    assert host.attach("block-attach", "guest", spec)
    host.front.write("flat", "version=1\n")
    assert host.attach("block-attach", "guest", spec) is None


def test_without_tap_ctl_xenblk_says_so(host: Host) -> None:
    (host.front.root / "sbin/tap-ctl").unlink()
    assert host.attach("block-attach", "guest", f"tap2:vhd:{host.image},xvdb,w") is None


PIECES = st.sampled_from(
    ["tap2:", "tap:", "tapdisk:", "vhd:", "aio:", "raw:", "{image}", "/", "a", ".", "-", "_", "%20", "|", "=", ":", " ", "\\", "é"]
    + [",", ",xvdb", ",xvd", ",xvda1", ",xvdab", ",xvdabc", ",hda", ",sdb1", ",w", ",r", ",rw", ",ro", ",w,", ",cdrom", ",vhd", ",target=/x"]
)
SPECS = st.builds(
    lambda start, more: "".join([*start, *more]),
    st.sampled_from(
        [["tap2:vhd:{image}", ",xvdb", ",w"], ["tap2:vhd:{image}"], ["tap:", "tapdisk:", "aio:", "{image}"], ["tap2:"]]
    ),
    st.lists(PIECES, max_size=4),
)


@pytest.mark.usefixtures("grammar")
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=SPECS, cuts=st.integers(0, 3))
def test_what_it_takes_it_reads_as_xenblk_does(host: Host, spec: str, cuts: int) -> None:
    from xenblk import diskspec  # noqa: PLC0415 # as above

    words = spec.format(image=host.image).rsplit(",", cuts)
    got = host.attach("block-attach", "guest", *words) if "tap" in spec else None
    if got and got[1:2] == ["--"]:
        driver, _, path = got[3].partition("target=")[2].partition(":")
        assert driver in ("vhd", "aio")
        if Path(path).is_file():
            assert got[3] == diskspec.read(*words).rewritten
        else:
            assert f"{driver}:{path}" in ",".join(words)
