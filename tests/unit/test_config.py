# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk.yaml, and the flat file that is made of it."""

import dataclasses
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lib import bridge
from xenblk import config, configfile
from xenblk.config import Config
from xenblk.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the place of xenblk.yaml and of run/config."""
    monkeypatch.setenv("XENBLK_YAML", str(tmp_path / "xenblk.yaml"))
    monkeypatch.setenv("XENBLK_CONFIG", str(tmp_path / "run" / "config"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", Config()),
        ("# nothing\n", Config()),
        ("version: 1\n", Config()),
        ("engine: posix\n", Config(engine="posix")),
        ("retry_errors: none\nretry_for: 0\n", Config(retry_errors="none", retry_for=0)),
        ("retry_then: pause\nno_space: fail\n", Config(retry_then="pause", no_space="fail")),
        ("kernel_io: no\n", Config()),
        ("transport: auto\n", Config()),
        ("transport: [auto]\n", Config()),
        ("transport: nbd\n", Config(transport=("nbd",))),
        ("transport: [ublk, blktap]\n", Config(transport=("ublk", "blktap"))),
        ("kernel_io: On\n", Config(kernel_io=True)),
        ("claim_vhd: yes\n", Config(claim_vhd=True)),
        ("restart: no\ndead_timeout: 60\n", Config(restart=False, dead_timeout=60)),
        ("image_dirs: [/a, '/b c']\n", Config(image_dirs=("/a", "/b c"))),
        ("image_dirs:\n- /ü\n- /x=#y\nengine: uring\n", Config(image_dirs=("/ü", "/x=#y"))),
    ],
)
def test_settings_are_read(text: str, settings: Config) -> None:
    assert configfile.parse(text.encode(), "x.yaml") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nimage_dir: [/a]\n", "x.yaml:2: unknown key image_dir; did you mean image_dirs?"),
        ("zzz: 1\n", "x.yaml:1: unknown key zzz; there are version, image_dirs, engine, transport, kernel_io,"),
        ("retry_interval: 0\n", "x.yaml:1: retry_interval: 0 is out of range; write 1 to 3600 seconds"),
        ("retry_for: long\n", "x.yaml:1: retry_for: a number of seconds is wanted"),
        ("no_space: stop\n", "x.yaml:1: no_space: stop isn't known; write wait or fail"),
        ("version: 1\nversion: 1\n", "x.yaml:2: version is set twice; keep one"),
        ("version: 2\n", "x.yaml:1: version: 2 isn't known, only 1; this file is for another release of xenblk"),
        ("version: one\n", "x.yaml:1: version: a number is wanted"),
        ("engine: fast\n", "x.yaml:1: engine: fast isn't known; write uring or posix"),
        ("engine: [uring]\n", "x.yaml:1: engine: uring or posix is wanted"),
        ("engine:\n", "x.yaml:1: engine: uring or posix is wanted"),
        ("transport: tcmu\n", "x.yaml:1: transport: tcmu isn't known; write auto or blktap or ublk or nbd"),
        ("transport: [nbd, auto]\n", "x.yaml:1: transport: auto isn't known; write blktap or ublk or nbd"),
        ("transport: [nbd, nbd]\n", "x.yaml:1: transport: one is named twice; write each of blktap, ublk, nbd"),
        ("transport: []\n", "x.yaml:1: transport: auto, or one or a list of blktap, ublk, nbd is wanted"),
        ("kernel_io: maybe\n", "x.yaml:1: kernel_io: yes or no is wanted"),
        # the C tools would take none for the default, which allows more
        ("image_dirs: []\n", "x.yaml:1: image_dirs: empty; name a directory, or leave it out for the default"),
        ("image_dirs: /srv\n", "x.yaml:1: image_dirs: a list is wanted: [/srv, /var/lib/xen/images]"),
        ("image_dirs:\n- /a\n- b\n", "x.yaml:3: image_dirs: b isn't absolute; start it with /"),
        ("image_dirs: ['']\n", "x.yaml:1: image_dirs: an empty path isn't absolute; start it with /"),
        ("image_dirs: [7]\n", "x.yaml:1: image_dirs: the path of a directory is wanted"),
        ('image_dirs: ["/a\\nengine=x"]\n', "x.yaml:1: image_dirs: '/a\\nengine=x' has control characters,"),
        ("image_dirs: ['/a ']\n", "x.yaml:1: image_dirs: '/a ' has control characters, or spaces"),
        (f"image_dirs: [{'/a,' * 65}]\n", "x.yaml:1: image_dirs: 65 directories, but 64 is the limit"),
        ("- a\n", "x.yaml:1: not a list of settings"),
        ("engine: 'uring\n", "x.yaml:2: not YAML: "),
        ("a: b: c\n", "x.yaml:1: not YAML: "),
        ("engine: *x\n", "x.yaml:1: not YAML: "),
        pytest.param("[" * 100000, "x.yaml:1: not YAML that is read here: too many levels", id="too-deep"),
        ("restart: !!bool maybe\n", "x.yaml:1: restart: yes or no is wanted, not maybe"),
        ("? [a]\n: b\n", "x.yaml:1: unknown key ?"),
    ],
)
def test_a_wrong_setting_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        configfile.parse(text.encode(), "x.yaml")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"engine: \x01\n", b"!!python/object/apply:os.system ['id']\n"])
def test_what_is_not_text_or_not_safe_is_an_error(data: bytes) -> None:
    with pytest.raises(UserError, match=r"x\.yaml"):
        configfile.parse(data, "x.yaml")


def test_without_a_file_the_defaults_hold(files: Path) -> None:
    assert config.load() == Config()


def test_a_machine_without_yaml_is_told_what_to_install(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "xenblk.yaml").write_text("engine: uring\n")
    modules: dict[str, Any] = sys.modules
    monkeypatch.setitem(modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "xenblk.configfile")
    monkeypatch.delattr(sys.modules["xenblk"], "configfile")
    with pytest.raises(UserError, match=r"xenblk\.yaml: can't be read \(.*yaml.*\); install python3-yaml"):
        config.load()


def test_the_installed_file_has_the_defaults() -> None:
    path = bridge.ROOT / "hotplug-scripts" / "xenblk.yaml"
    assert config.load(str(path)) == Config()
    # a key or an item of a list follows the # at once, words come after a space
    uncommented = re.sub(r"^#(?=[a-z_]+:|  -)", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert configfile.parse(uncommented.encode(), str(path)) == Config()
    assert set(re.findall(r"^[a-z_]+(?=:)", uncommented, re.MULTILINE)) == {field.name for field in dataclasses.fields(Config)}


def test_the_flat_file_is_what_the_c_tools_read(files: Path) -> None:
    config.apply(Config(image_dirs=("/a", "/b c"), engine="posix", retry_for=5))
    flat = files / "run" / "config"
    lines = flat.read_text(encoding="utf-8").splitlines()
    settings = [line for line in lines if not line.startswith("#")]
    assert settings[:4] == ["version=1", "image_dir=/a", "image_dir=/b c", "engine=posix"]
    assert settings[4:7] == ["retry_errors=transient", "retry_interval=1", "retry_for=5"]
    assert settings[7:9] == ["retry_then=fail", "no_space=wait"]
    assert settings[9:] == ["dead_timeout=0", "transport=auto", "kernel_io=no", "restart=yes"]
    assert "transport=ublk,nbd\n" in config.flat(Config(transport=("ublk", "nbd")))
    assert stat.S_IMODE(flat.stat().st_mode) == 0o644
    assert stat.S_IMODE(flat.parent.stat().st_mode) & 0o755 == 0o755


def test_the_flat_file_is_replaced_whole(files: Path) -> None:
    config.apply(Config())
    flat = files / "run" / "config"
    with flat.open(encoding="utf-8") as before:
        config.apply(Config(engine="posix"))
        assert "engine=uring" in before.read()
    assert os.listdir(flat.parent) == ["config"]


def test_a_flat_file_that_cannot_be_written_is_an_error(files: Path) -> None:
    (files / "run").write_text("in the way")
    with pytest.raises(UserError, match=r"run/config: .*; run xenblk config apply as root"):
        config.apply(Config())


def test_the_flat_file_follows_the_yaml_file(files: Path) -> None:
    yaml, flat = files / "xenblk.yaml", files / "run" / "config"
    config.apply_if_changed()
    assert not flat.exists()
    yaml.write_text("engine: posix\n")
    config.apply_if_changed()
    assert "engine=posix" in flat.read_text()
    inode = flat.stat().st_ino
    config.apply_if_changed()
    assert flat.stat().st_ino == inode
    yaml.unlink()
    config.apply_if_changed()
    assert "engine=uring" in flat.read_text()


def run(command: Path, directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = bridge.environment(
        XENBLK_YAML=str(directory / "xenblk.yaml"), XENBLK_CONFIG=str(directory / "run" / "config")
    )
    return subprocess.run(
        [str(command), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_commands(tmp_path: Path, xenblk_command: Path) -> None:
    (tmp_path / "xenblk.yaml").write_text("engine: posix\n")
    assert run(xenblk_command, tmp_path, "config", "check").returncode == 0
    assert not (tmp_path / "run").exists()
    assert run(xenblk_command, tmp_path, "config", "apply").returncode == 0
    assert "engine=posix" in (tmp_path / "run" / "config").read_text()
    shown = run(xenblk_command, tmp_path, "config", "show")
    assert configfile.parse(shown.stdout.encode(), "shown") == Config(engine="posix")


def test_a_wrong_file_changes_nothing_and_exits_with_1(tmp_path: Path, xenblk_command: Path) -> None:
    run(xenblk_command, tmp_path, "config", "apply")
    before = (tmp_path / "run" / "config").read_text()
    (tmp_path / "xenblk.yaml").write_text("engine: fast\n")
    for action in ("check", "apply", "show"):
        result = run(xenblk_command, tmp_path, "config", action)
        assert result.returncode == 1
        assert result.stderr == f"xenblk: {tmp_path}/xenblk.yaml:1: engine: fast isn't known; write uring or posix\n"
    assert (tmp_path / "run" / "config").read_text() == before


def test_a_file_that_is_named_must_exist(tmp_path: Path, xenblk_command: Path) -> None:
    for action in ("check", "apply", "show"):
        result = run(xenblk_command, tmp_path, "config", action, f"{tmp_path}/none.yaml")
        assert result.returncode == 1
        assert (
            result.stderr
            == f"xenblk: {tmp_path}/none.yaml: No such file or directory; make it a file that can be read\n"
        )
    assert not (tmp_path / "run").exists()


def test_a_guest_without_our_disks_does_not_wait_for_yaml(tmp_path: Path, xenblk_command: Path) -> None:
    (tmp_path / "guest.cfg").write_text("name = 'g'\n")
    loaded = subprocess.run(
        [bridge.PYTHON, "-X", "importtime", str(xenblk_command), "rewrite", f"{tmp_path}/guest.cfg"],
        env=bridge.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stderr
    assert "xenblk.libxl" in loaded
    assert not re.search(r"\| +yaml$", loaded, re.M)
