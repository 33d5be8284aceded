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
        result = self.front.run(*words, FAKE=f'[ "$name" != tap-ctl ] || exit {status}', **where)
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


@pytest.mark.parametrize("tap", ["tap2", "tap"])
@pytest.mark.parametrize("driver", ["vhd", "aio"])
@pytest.mark.parametrize("mode", ["w", "r"])
def test_a_plain_disk_goes_to_xl_at_once(host: Host, tap: str, driver: str, mode: str) -> None:
    from xenblk import diskspec  # noqa: PLC0415 # its binding is the fixture's

    spec = f"{tap}:{driver}:{host.image},xvdb,{mode}"
    rewritten = f"format=raw,script=block-xenblk,vdev=xvdb,access={mode},target={driver}:{host.image}"
    assert host.attach("block-attach", "guest", spec) == ["block-attach", "--", "guest", rewritten]
    assert diskspec.read(spec).rewritten == rewritten
    assert host.front.given("tap-ctl") == ["probe", "-a", f"{driver}:{host.image}", *(["-R"] if mode == "r" else [])]


def test_options_of_xl_itself_are_kept(host: Host) -> None:
    got = host.attach("-vv", "block-attach", "7", f"tap2:vhd:{host.image},xvdb,w")
    assert got and got[:4] == ["-vv", "block-attach", "--", "7"]


@pytest.mark.parametrize(
    "words",
    [
        ["guest", "tap2:vhd:{image},xvdb,w", "backend=other"],
        ["guest", "tap2:vhd:{image}", "xvdb", "w"],
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
    + [",", ",xvdb", ",xvd", ",xvda1", ",xvdab", ",xvdabc", ",hda", ",w", ",r", ",rw", ",ro", ",w,", ",cdrom", ",vhd", ",target=/x"]
)
SPECS = st.builds(
    lambda start, more: "".join([*start, *more]),
    st.sampled_from([["tap2:vhd:{image}", ",xvdb", ",w"], ["tap2:vhd:{image}"], ["tap:", "aio:", "{image}"], ["tap2:"]]),
    st.lists(PIECES, max_size=4),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=SPECS)
def test_what_it_takes_it_reads_as_xenblk_does(host: Host, spec: str) -> None:
    from xenblk import diskspec  # noqa: PLC0415 # as above

    spec = spec.format(image=host.image)
    got = host.attach("block-attach", "guest", spec) if "tap" in spec else None
    if got and got[1:2] == ["--"]:
        host.image.with_name("other").touch()
        path = spec.split(":", 2)[2].split(",")[0]
        if not Path(path).is_file():
            assert got[3].endswith(path)
            return
        assert got[3] == diskspec.read(spec).rewritten
