# SPDX-License-Identifier: LGPL-2.1-only
"""`make install` and `make uninstall`: every path is where DESTDIR, prefix and sysconfdir say."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import xenblk
from tests.lib import bridge

SETTINGS = "version: 1\nengine: posix\n"


def make(*arguments: str, umask: int = 0o022) -> None:
    """Runs make in the repository, apart from a make that runs this test."""
    result = try_make(*arguments, umask=umask)
    assert result.returncode == 0, result.stdout + result.stderr


def try_make(*arguments: str, umask: int = 0o022) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("M")}
    return subprocess.run(
        ["make", "-s", "JOBS=2", *arguments],
        cwd=bridge.ROOT,
        env=environment,
        umask=umask,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def files(root: Path) -> set[str]:
    """The files under root, by their absolute names once root is /."""
    return {"/" + str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def usr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("usr")
    make("install", f"DESTDIR={root}", umask=0o077)
    return root


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An install without DESTDIR, to run from its place."""
    root = tmp_path_factory.mktemp("opt")
    make("install", f"prefix={root}/opt", f"sysconfdir={root}/etc")
    yield root
    make("uninstall", f"prefix={root}/opt", f"sysconfdir={root}/etc")
    assert files(root) == {"/etc/xen/xenblk.yaml"}


def test_all_that_xen_systemd_and_udev_look_for_is_in_its_place(usr: Path) -> None:
    assert files(usr) >= {
        "/etc/xen/scripts/block-xenblk",
        "/etc/xen/xenblk.yaml",
        "/usr/bin/vhd-util",
        "/usr/lib/modules-load.d/xenblk.conf",
        "/usr/lib/systemd/system/xenblk.service",
        "/usr/lib/systemd/system/xenblk-gc.service",
        "/usr/lib/systemd/system/xenblk-gc.timer",
        "/usr/lib/tmpfiles.d/xenblk.conf",
        "/usr/lib/udev/rules.d/59-xenblk.rules",
        "/usr/libexec/tapdisk",
        "/usr/libexec/xenblk-vbd",
        "/usr/sbin/tap-ctl",
        "/usr/sbin/xenblk",
        "/usr/sbin/xl",
        "/usr/share/man/man5/xenblk.yaml.5",
        "/usr/share/man/man8/tap-ctl.8",
        "/usr/share/man/man8/tapdisk.8",
        "/usr/share/man/man8/vhd-util.8",
        "/usr/share/man/man8/xenblk.8",
    }


def test_no_installed_file_knows_where_it_was_staged_or_built(usr: Path) -> None:
    text_files = [path for path in usr.rglob("*") if path.is_file() and "\0" not in path.read_text(errors="replace")]
    compiled = list(usr.rglob("*.pyc"))
    assert text_files
    for path in [*text_files, *compiled]:
        data = path.read_bytes()
        assert os.fsencode(usr) not in data, path
        assert os.fsencode(bridge.ROOT) not in data, path
        assert not re.search(rb"@[a-z]+@", data), path


def test_whatever_the_umask_all_users_can_read_what_is_installed(usr: Path) -> None:
    for path in usr.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o044 == 0o044, path


def test_python_finds_every_module_compiled_whatever_the_clock_says(usr: Path) -> None:
    package = usr / "usr/lib/xenblk/xenblk"
    modules = sorted(path.stem for path in package.glob("*.py"))
    compiled = {path.name.split(".")[0]: path for path in package.glob("__pycache__/*.pyc")}
    assert sorted(compiled) == modules
    for path in compiled.values():
        # PEP 552: found by the source's hash, checked at import
        assert path.read_bytes()[4:8] == b"\x03\0\0\0"


def test_another_prefix_runs_from_its_place(opt: Path) -> None:
    command = [str(opt / "opt/sbin/xenblk")]
    environment = {"PATH": "/usr/bin:/bin"}
    shown = subprocess.run(
        [*command, "--version"], env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert shown == f"xenblk {xenblk.VERSION}\n"
    (opt / "etc/xen/xenblk.yaml").write_text("engine: none\n", encoding="utf-8")
    checked = subprocess.run(
        [*command, "config", "check"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.stderr.startswith(f"xenblk: {opt}/etc/xen/xenblk.yaml:1: engine: ")
    unit = (opt / "opt/lib/systemd/system/xenblk.service").read_text(encoding="utf-8")
    assert f"ExecStart={command[0]} config apply\n" in unit


def test_the_block_script_and_tap_ctl_of_another_prefix_find_the_rest(opt: Path, tmp_path: Path) -> None:
    script = (opt / "etc/xen/scripts/block-xenblk").read_text(encoding="utf-8")
    assert f"\nPATH={opt}/opt/sbin:$PATH\n" in script
    environment = {"PATH": "/usr/bin:/bin", "XENBLK_CONTROL_DIR": str(tmp_path)}
    spawned = subprocess.run(
        [str(opt / "opt/sbin/tap-ctl"), "spawn"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    pid = int(spawned.stdout)
    try:
        assert os.readlink(f"/proc/{pid}/exe") == f"{opt}/opt/libexec/tapdisk"
    finally:
        os.kill(pid, signal.SIGTERM)


def test_an_edited_configuration_outlives_install_and_uninstall(tmp_path: Path) -> None:
    settings = tmp_path / "etc/xen/xenblk.yaml"
    make("install", f"DESTDIR={tmp_path}", "prefix=/usr/local")
    settings.write_text(SETTINGS, encoding="utf-8")
    before = files(tmp_path)
    make("install", f"DESTDIR={tmp_path}", "prefix=/usr/local")
    assert files(tmp_path) == before
    assert settings.read_text(encoding="utf-8") == SETTINGS
    make("uninstall", f"DESTDIR={tmp_path}", "prefix=/usr/local")
    assert files(tmp_path) == {"/etc/xen/xenblk.yaml"}
    assert settings.read_text(encoding="utf-8") == SETTINGS


SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
[ "$1" != show ] || cat "$(dirname "$0")/unit"
"""


@pytest.mark.parametrize("known", [True, False])
def test_units_that_are_removed_are_disabled_before_and_those_of_another_prefix_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    places = [f"prefix={tmp_path}/opt", f"sysconfdir={tmp_path}/etc"]
    (tmp_path / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "systemctl").chmod(0o755)
    (tmp_path / "unit").write_text(f"{tmp_path}/opt/lib/systemd/system/xenblk.service\n" if known else "/lib/else.service\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin:/usr/sbin:/sbin")
    make("install", *places)
    assert not (tmp_path / "calls").exists()
    make("uninstall", *places)
    calls = [call for call in (tmp_path / "calls").read_text().splitlines() if not call.startswith("show ")]
    expected = ["--quiet disable --now xenblk.service xenblk-gc.timer", "daemon-reload"]
    assert calls == (expected if known else [])


def test_the_binding_is_made_again_for_another_release_of_xen(tmp_path: Path) -> None:
    """An upgrade of Xen changes no file that it is made of."""
    (tmp_path / "pkg-config").write_text("#!/bin/sh\necho 4.99\n")
    (tmp_path / "pkg-config").chmod(0o755)
    command = ["make", "-n", "-C", str(bridge.ROOT), "bridge"]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "-m xenblk._libxl_build" in done.stdout


def test_a_module_that_is_gone_from_the_source_is_gone_after_the_next_install(tmp_path: Path) -> None:
    stale = tmp_path / "usr/lib/xenblk/xenblk/stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    make("install", f"DESTDIR={tmp_path}")
    assert not stale.exists()


def test_every_program_tells_the_same_version(usr: Path) -> None:
    version = (bridge.ROOT / "VERSION").read_text(encoding="ascii").strip()
    assert version == xenblk.VERSION
    for program in ("usr/sbin/tap-ctl", "usr/bin/vhd-util", "usr/libexec/tapdisk"):
        shown = subprocess.run(
            [str(usr / program), "--version"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        assert shown == f"{Path(program).name} {version}\n"


WRAPPER = "../lib/xen-common/bin/xen-utils-wrapper"


@pytest.fixture
def xen(tmp_path: Path) -> Path:
    """A root with Xen's tools as Debian has them."""
    (tmp_path / "usr/sbin").mkdir(parents=True)
    script = tmp_path / "usr/lib/xen-common/bin/xen-utils-wrapper"
    script.parent.mkdir(parents=True)
    script.write_text('#!/bin/sh\necho "stock ${0##*/}" "$@"\n', encoding="ascii")
    script.chmod(0o755)
    (tmp_path / "usr/sbin/xl").symlink_to(WRAPPER)
    return tmp_path


def call_xl(root: Path) -> str:
    """What the installed xl says; it finds no Xen but the one set aside."""
    return subprocess.run(
        [str(root / "usr/sbin/xl"), "--set-aside"], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_the_stock_xl_is_set_aside_works_there_and_comes_back(xen: Path) -> None:
    before = files(xen)
    # the second time the front must not be taken for the stock one
    for _ in range(2):
        make("install", f"DESTDIR={xen}")
        assert not (xen / "usr/sbin/xl").is_symlink()
        assert os.readlink(xen / "usr/libexec/xl") == WRAPPER
        assert call_xl(xen) == "stock xl --set-aside\n"
    for _ in range(2):
        make("uninstall", f"DESTDIR={xen}")
        assert os.readlink(xen / "usr/sbin/xl") == WRAPPER
        assert files(xen) == before | {"/etc/xen/xenblk.yaml"}


def test_a_stock_xl_that_came_later_is_set_aside_by_the_next_install(xen: Path) -> None:
    (xen / "usr/sbin/xl").unlink()
    make("install", f"DESTDIR={xen}")
    assert not (xen / "usr/libexec/xl").exists()
    (xen / "usr/sbin/xl").unlink()
    (xen / "usr/sbin/xl").symlink_to(WRAPPER)
    make("install", f"DESTDIR={xen}")
    assert call_xl(xen) == "stock xl --set-aside\n"
    make("uninstall", f"DESTDIR={xen}")
    assert os.readlink(xen / "usr/sbin/xl") == WRAPPER


def test_uninstall_removes_nothing_while_disks_are_served_unless_told(xen: Path) -> None:
    make("install", f"DESTDIR={xen}")
    (xen / "run/blktap-control").mkdir(parents=True)
    for minor in (0, 7):
        (xen / f"run/blktap-control/disk.{minor}").touch()
    before = files(xen)
    refused = try_make("uninstall", f"DESTDIR={xen}")
    assert refused.returncode
    assert "make uninstall: 2 disks are served (xenblk ls); shut their guests down first" in refused.stderr
    assert files(xen) == before
    make("uninstall", f"DESTDIR={xen}", "FORCE=1")
    assert "/usr/libexec/tapdisk" not in files(xen)


def test_uninstall_leaves_a_stock_xl_that_replaced_the_front(xen: Path) -> None:
    make("install", f"DESTDIR={xen}")
    (xen / "usr/sbin/xl").unlink()
    (xen / "usr/sbin/xl").write_text("another", encoding="ascii")
    make("uninstall", f"DESTDIR={xen}")
    assert (xen / "usr/sbin/xl").read_text(encoding="ascii") == "another"
    assert os.readlink(xen / "usr/libexec/xl") == WRAPPER


def test_a_dangling_stock_xl_is_set_aside_too(xen: Path) -> None:
    """The link of a root whose files are not all there yet."""
    (xen / "usr/lib/xen-common/bin/xen-utils-wrapper").unlink()
    make("install", f"DESTDIR={xen}")
    assert os.readlink(xen / "usr/libexec/xl") == WRAPPER
    make("uninstall", f"DESTDIR={xen}")
    assert os.readlink(xen / "usr/sbin/xl") == WRAPPER


def test_xenblk_of_another_prefix_goes_on_to_the_front_beside_it(opt: Path, tmp_path: Path) -> None:
    real = tmp_path / "xl"
    real.write_text('#!/bin/sh\necho "$*"\n', encoding="ascii")
    real.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "XENBLK_REAL_XL": str(real)}
    shown = subprocess.run(
        [str(opt / "opt/sbin/xenblk"), "xl", "list", "-l"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert shown == "list -l\n"


@pytest.mark.parametrize(
    "page", ["man8/tap-ctl.8", "man8/tapdisk.8", "man8/vhd-util.8", "man8/xenblk.8", "man5/xenblk.yaml.5"]
)
def test_man_shows_every_page_without_a_warning(usr: Path, page: str) -> None:
    shown = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(usr / "usr/share/man" / page)],
        env={"PATH": "/usr/bin:/bin", "MANROFFSEQ": "", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stderr == ""
    assert re.search(r"^N\S*A\S*M\S*E", shown.stdout, re.M)
    assert "POD ERRORS" not in shown.stdout


def test_dkms_finds_the_drivers_source(tmp_path: Path) -> None:
    version = (bridge.ROOT / "VERSION").read_text(encoding="ascii").strip()
    source = bridge.ROOT / "kernel-patches/src"
    make("install-dkms", f"DESTDIR={tmp_path}")
    tree = tmp_path / "usr/src" / f"xenblk-blktap-{version}"
    built = {path.name for path in source.iterdir() if path.suffix in (".c", ".h")} | {"Kbuild"}
    assert files(tree) == {f"/{name}" for name in built | {"COPYING", "dkms.conf"}}
    assert all((tree / name).read_bytes() == (source / name).read_bytes() for name in built)
    settings = subprocess.run(
        ["bash", "-ec", '. "$0"; echo "$PACKAGE_NAME-$PACKAGE_VERSION ${BUILT_MODULE_NAME[0]}"', tree / "dkms.conf"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert settings.stdout == f"{tree.name} blktap\n"
    make("uninstall-dkms", f"DESTDIR={tmp_path}")
    assert files(tmp_path) == set()
