# SPDX-License-Identifier: LGPL-2.1-only
"""The text of xenblk.yaml (xenblk.yaml(5)): keys and values are checked by YAML node, so that errors have a line."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import yaml

from xenblk.config import (
    AUTO,
    ENGINES,
    MAX_IMAGE_DIRS,
    NO_SPACE,
    RETRY_ERRORS,
    RETRY_THEN,
    TRANSPORTS,
    VERSION,
    Config,
)
from xenblk.errors import UserError

_T = TypeVar("_T")


def parse(data: bytes, path: str) -> Config:
    """The settings in the YAML text. path names it in messages. Raises UserError."""
    try:
        root = yaml.compose(data, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {what}") from None
    except RecursionError:
        raise UserError(f"{path}:1: not YAML that is read here: too many levels") from None
    if root is None:
        return Config()
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}:{_line(root)}: not a list of settings; write them as `key: value`, one a line")
    readers: dict[str, Callable[[yaml.Node], object]] = {
        "version": _version,
        "image_dirs": _image_dirs,
        "engine": partial(_choice, ENGINES),
        "transport": _transport,
        "kernel_io": _yes_or_no,
        "claim_vhd": _yes_or_no,
        "restart": _yes_or_no,
        "dead_timeout": partial(_seconds, 0, 365 * 86400),
        "retry_errors": partial(_choice, RETRY_ERRORS),
        "retry_interval": partial(_seconds, 1, 3600),
        "retry_for": partial(_seconds, 0, 365 * 86400),
        "retry_then": partial(_choice, RETRY_THEN),
        "no_space": partial(_choice, NO_SPACE),
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


def _choice(choices: tuple[str, ...], node: yaml.Node) -> str:
    choice = _scalar(node, str, " or ".join(choices))
    if choice not in choices:
        raise _Wrong(node, f"{choice} isn't known; write {' or '.join(choices)}")
    return choice


def _transport(node: yaml.Node) -> tuple[str, ...]:
    if isinstance(node, yaml.ScalarNode):
        return (_choice(AUTO + TRANSPORTS, node),)
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise _Wrong(node, f"auto, or one or a list of {', '.join(TRANSPORTS)} is wanted")
    choices = TRANSPORTS if len(node.value) > 1 else AUTO + TRANSPORTS
    names = tuple(_choice(choices, item) for item in node.value)
    if len(set(names)) < len(names):
        raise _Wrong(node, f"one is named twice; write each of {', '.join(TRANSPORTS)} at most once")
    return names


def _yes_or_no(node: yaml.Node) -> bool:
    wanted = "yes or no"
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:bool":
        raise _Wrong(node, f"{wanted} is wanted")
    if node.value.lower() not in yaml.SafeLoader.bool_values:
        raise _Wrong(node, f"{wanted} is wanted, not {node.value}")
    return bool(yaml.SafeLoader.bool_values[node.value.lower()])


def _seconds(low: int, high: int, node: yaml.Node) -> int:
    seconds = _scalar(node, int, "a number of seconds")
    if not low <= seconds <= high:
        raise _Wrong(node, f"{seconds} is out of range; write {low} to {high} seconds")
    return seconds
