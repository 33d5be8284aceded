# SPDX-License-Identifier: GPL-2.0-only
"""What the patches are: `messages/NN-name.txt` has the subject, the files and the message of one, 00 of the cover letter."""

import re
from dataclasses import dataclass
from pathlib import Path

from patchseries import HERE, SeriesError


@dataclass(frozen=True)
class Message:
    """One patch: its files are paths in the kernel."""

    source: str
    subject: str
    files: tuple[str, ...]
    body: str


def _parse(path: Path) -> Message:
    where = f"messages/{path.name}"
    head, _, body = path.read_text(encoding="utf-8").partition("\n\n")
    fields = dict(re.findall(r"^(\w+): *(.*)$", re.sub(r"\n[ \t]+", " ", head), re.M))
    if "Subject" not in fields or not body.strip():
        raise SeriesError(f"{where}: needs Subject:, Files:, an empty line and a message")
    return Message(where, fields["Subject"], tuple(fields.get("Files", "").split()), body.strip() + "\n")


def read_plan(here: Path = HERE) -> tuple[Message, list[Message]]:
    """The cover letter and the patches in their order."""
    paths = sorted((here / "messages").glob("[0-9][0-9]-*.txt"))
    if not paths or not paths[0].name.startswith("00-"):
        raise SeriesError("messages/: no 00-*.txt, which is the cover letter")
    cover, *patches = [_parse(path) for path in paths]
    for patch in patches:
        if not patch.files:
            raise SeriesError(f"{patch.source}: Files: names none")
    return cover, patches


def check_plan(patches: list[Message], files: set[str]) -> None:
    """Each file is in one patch, and each patch has files that there are."""
    owner: dict[str, str] = {}
    for patch in patches:
        for name in patch.files:
            if name in owner:
                raise SeriesError(f"{patch.source}: {name} is in {owner[name]} already")
            if name not in files:
                raise SeriesError(f"{patch.source}: {name}: src/ and base.py have nothing for that path")
            owner[name] = patch.source
    missing = sorted(files - set(owner))
    if missing:
        raise SeriesError(f"{missing[0]} is in no patch: add it to Files: of one of messages/*.txt")
