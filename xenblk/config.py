# SPDX-License-Identifier: LGPL-2.1-only
"""The configuration: /etc/xen/xenblk.yaml, for people, and /run/xenblk/config, which the C tools read.

The flat file's format is in docs/architecture.md, "Configuration". $XENBLK_YAML and $XENBLK_CONFIG name other files.
"""

import contextlib
import difflib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeVar

import yaml

from xenblk.errors import UserError

YAML_PATH = "/etc/xen/xenblk.yaml"
FLAT_PATH = "/run/xenblk/config"
VERSION = 1
MAX_IMAGE_DIRS = 64
ENGINES = ("uring", "posix")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Config:
    """The settings, with their defaults. The names are the keys of the YAML file."""

    version: int = VERSION
    image_dirs: tuple[str, ...] = ("/var/lib/xen/images", "/srv")
    engine: str = "uring"


def yaml_path() -> str:
    """The file for people."""
    return os.environ.get("XENBLK_YAML", YAML_PATH)


def flat_path() -> str:
    """The file for the C tools."""
    return os.environ.get("XENBLK_CONFIG", FLAT_PATH)


def load(path: str | None = None) -> Config:
    """The settings in a YAML file. No file: the defaults. Raises UserError that names file, line, key and remedy."""
    path = path or yaml_path()
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it a file that can be read") from None
    return parse(data, path)


def parse(data: bytes, path: str) -> Config:
    """The settings in the YAML text. path names it in messages. Raises UserError."""
    try:
        root = yaml.compose(data, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {what}") from None
    if root is None:
        return Config()
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}:{_line(root)}: not a list of settings; write them as `key: value`, one a line")
    readers: dict[str, Callable[[yaml.Node], object]] = {
        "version": _version,
        "image_dirs": _image_dirs,
        "engine": _engine,
    }
    values: dict[str, object] = {}
    for key_node, value_node in root.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        if key not in readers:
            close = difflib.get_close_matches(key, readers, 1)
            remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(readers)}"
            raise UserError(f"{path}:{_line(key_node)}: unknown key {key}; {remedy}")
        if key in values:
            raise UserError(f"{path}:{_line(key_node)}: {key} is set twice; keep one")
        try:
            values[key] = readers[key](value_node)
        except _Wrong as error:
            raise UserError(f"{path}:{_line(error.node)}: {key}: {error}") from None
    return Config(**values)  # type: ignore[arg-type]


class _Wrong(Exception):
    def __init__(self, node: yaml.Node, text: str) -> None:
        super().__init__(text)
        self.node = node


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _scalar(node: yaml.Node, kind: type[_T], wanted: str) -> _T:
    tags = {str: "tag:yaml.org,2002:str", int: "tag:yaml.org,2002:int"}
    if not isinstance(node, yaml.ScalarNode) or node.tag != tags[kind]:
        raise _Wrong(node, f"{wanted} is wanted")
    try:
        return kind(node.value)  # type: ignore[call-arg]
    except ValueError:
        raise _Wrong(node, f"{wanted} is wanted, not {node.value}") from None


def _version(node: yaml.Node) -> int:
    version = _scalar(node, int, "a number")
    if version != VERSION:
        raise _Wrong(node, f"{version} isn't known, only {VERSION}; this file is for another release of xenblk")
    return version


def _image_dirs(node: yaml.Node) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise _Wrong(node, "a list is wanted: [/srv, /var/lib/xen/images]")
    if len(node.value) > MAX_IMAGE_DIRS:
        raise _Wrong(node, f"{len(node.value)} directories, but {MAX_IMAGE_DIRS} is the limit")
    if not node.value:
        raise _Wrong(node, "empty; name a directory, or leave it out for the default")
    return tuple(_image_dir(item) for item in node.value)


def _image_dir(node: yaml.Node) -> str:
    path = _scalar(node, str, "the path of a directory")
    if not path.startswith("/"):
        raise _Wrong(node, f"{path or 'an empty path'} isn't absolute; start it with /")
    if path != path.strip() or not path.isprintable():
        raise _Wrong(node, f"{path!r} has control characters, or spaces at an end; rename the directory")
    return path


def _engine(node: yaml.Node) -> str:
    engine = _scalar(node, str, " or ".join(ENGINES))
    if engine not in ENGINES:
        raise _Wrong(node, f"{engine} isn't known; write {' or '.join(ENGINES)}")
    return engine


def flat(config: Config) -> str:
    """The text for the C tools."""
    lines = ["# written by xenblk config apply; change xenblk.yaml instead", f"version={config.version}"]
    lines += [f"image_dir={path}" for path in config.image_dirs]
    lines.append(f"engine={config.engine}")
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
