# SPDX-License-Identifier: LGPL-2.1-only
"""The configuration: /etc/xen/xenblk.yaml, for people, and /run/xenblk/config, which the C tools read.

The flat file's format is in docs/architecture.md, "Configuration". $XENBLK_YAML and $XENBLK_CONFIG name other files.
"""

import contextlib
import os
from dataclasses import dataclass, fields

from xenblk.errors import UserError

YAML_PATH = "/etc/xen/xenblk.yaml"
FLAT_PATH = "/run/xenblk/config"
TAP_CTL = "/usr/sbin/tap-ctl"
VHD_UTIL = "/usr/bin/vhd-util"
VERSION = 1
MAX_IMAGE_DIRS = 64
ENGINES = ("uring", "posix")
TRANSPORTS = ("blktap", "ublk", "nbd")
AUTO = ("auto",)
RETRY_ERRORS = ("none", "transient", "all")
RETRY_THEN = ("fail", "pause")
NO_SPACE = ("wait", "fail")


@dataclass(frozen=True)
class Config:
    """The settings, with their defaults. The names are the keys of the YAML file."""

    version: int = VERSION
    image_dirs: tuple[str, ...] = ("/var/lib/xen/images", "/srv")
    engine: str = "uring"
    transport: tuple[str, ...] = AUTO
    kernel_io: bool = False
    claim_vhd: bool = False
    restart: bool = True
    dead_timeout: int = 0
    retry_errors: str = "transient"
    retry_interval: int = 1
    retry_for: int = 600
    retry_then: str = "fail"
    no_space: str = "wait"


def yaml_path() -> str:
    """The file for people."""
    return os.environ.get("XENBLK_YAML", YAML_PATH)


def flat_path() -> str:
    """The file for the C tools."""
    return os.environ.get("XENBLK_CONFIG", FLAT_PATH)


def load(path: str | None = None) -> Config:
    """The settings in a YAML file, the usual one if path is None, which need not exist: then all is as by default.

    Raises UserError that names file, line, key and remedy.
    """
    named = path or yaml_path()
    try:
        with open(named, "rb") as file:
            data = file.read()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path is None:
            return Config()
        raise UserError(f"{named}: {error.strerror}; make it a file that can be read") from None
    # Here, not above: importing yaml takes as long as all else that xenblk does for a guest without our disks.
    try:
        from xenblk import configfile  # noqa: PLC0415
    except ImportError as error:
        raise UserError(f"{named}: can't be read ({error}); install python3-yaml") from None
    return configfile.parse(data, named)


def flat(config: Config) -> str:
    """The text for the C tools."""
    lines = ["# written by xenblk config apply; change xenblk.yaml instead", f"version={config.version}"]
    lines += [f"image_dir={path}" for path in config.image_dirs]
    keys = ("engine", "retry_errors", "retry_interval", "retry_for", "retry_then", "no_space", "dead_timeout")
    lines += [f"{key}={getattr(config, key)}" for key in keys]
    lines.append(f"transport={','.join(config.transport)}")
    lines += [f"{key}={'yes' if getattr(config, key) else 'no'}" for key in ("kernel_io", "restart")]
    return "\n".join(lines) + "\n"


def show(config: Config) -> dict[str, object]:
    """The settings as plain values, by key."""
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def apply(config: Config) -> None:
    """Replaces the flat file, as a whole or not at all. Raises UserError if it can't be written."""
    path = flat_path()
    directory = os.path.dirname(path)
    temporary = None
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        import tempfile  # noqa: PLC0415 # rarely needed, slow to import

        descriptor, temporary = tempfile.mkstemp(prefix=".config-", dir=directory)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(flat(config))
            os.fchmod(file.fileno(), 0o644)
        os.rename(temporary, path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise UserError(f"{path}: {error.strerror}; run xenblk config apply as root") from None


def apply_if_changed() -> None:
    """Brings the flat file up to date before a guest is started. Raises UserError."""
    config = load()
    try:
        with open(flat_path(), encoding="utf-8", errors="surrogateescape") as file:
            current = file.read()
    except FileNotFoundError:
        current = ""
    except OSError as error:
        raise UserError(f"{flat_path()}: {error.strerror}; run xenblk config apply as root") from None
    if current != flat(config) and (current or config != Config()):
        apply(config)
