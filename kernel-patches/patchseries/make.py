# SPDX-License-Identifier: GPL-2.0-only
"""The files of a series, and the files of a kernel that has it."""

import re
from pathlib import Path

from patchseries import HERE, mail
from patchseries.base import ADDITIONS, Base, added_text, read_base
from patchseries.plan import Message, check_plan, read_plan
from patchseries.resolve import DRIVER, makefile, new_files, objects

MAKEFILE = f"{DRIVER}/Makefile"


def added_files(kernel: str, here: Path = HERE) -> dict[str, str]:
    """What a kernel has that it had not before, by path."""
    additions = {addition.path for addition in ADDITIONS if addition.text is None}
    return new_files(here / "src", read_base(kernel, here).version_code, additions)


def _file_name(number: int, subject: str) -> str:
    words = re.sub(r"[^A-Za-z0-9_.]+", "-", subject).strip("-.")
    return f"{number:04}-{words[:52].rstrip('-.')}.patch"


class _Tree:
    """The kernel's tree as the patches so far leave it."""

    def __init__(self, here: Path, base: Base, files: dict[str, str]) -> None:
        self._files = files
        self._objects = objects(here / "src")
        self._done: list[str] = []
        self._additions = {
            addition.path: (base.places[addition.path], added_text(addition, here / "src")) for addition in ADDITIONS
        }

    def whole(self) -> str:
        """The diff of all patches together."""
        diffs = [mail.new_file(path, text) for path, text in self._files.items()]
        return "".join(sorted(diffs + [mail.added_lines(path, *parts) for path, parts in self._additions.items()]))

    def diff(self, patch: Message) -> str:
        """The diff of the patch, with the objects that it adds in the Makefile: each can be built at once."""
        diffs = []
        for path in patch.files:
            if path in self._additions:
                diffs.append(mail.added_lines(path, *self._additions[path]))
            else:
                diffs.append(mail.new_file(path, self._files[path]))
        stems = {path.removeprefix(f"{DRIVER}/").removesuffix(".c") for path in patch.files if path.endswith(".c")}
        now = [name for name in self._objects if name in self._done or name.removesuffix(".o") in stems]
        if now != self._done:
            old, new = makefile(self._done), makefile(now)
            diffs.append(mail.changed_file(MAKEFILE, old, new) if self._done else mail.new_file(MAKEFILE, new))
            self._done = now
        return "".join(sorted(diffs))


def make_series(kernel: str, here: Path = HERE) -> dict[str, str]:
    """The files of `series-KERNEL`, by name."""
    base = read_base(kernel, here)
    version = (here.parent / "VERSION").read_text(encoding="utf-8").strip()
    files = added_files(kernel, here)
    cover, patches = read_plan(here)
    check_plan(patches, set(files) - {MAKEFILE} | {addition.path for addition in ADDITIONS})
    tree = _Tree(here, base, files)
    diffs = [tree.diff(patch) for patch in patches]
    total = len(patches)

    result = {}
    for number, (patch, diff) in enumerate(zip(patches, diffs, strict=True), 1):
        letter = mail.Letter(number, total, version, kernel)
        text = letter.head(patch.subject) + patch.body + f"\nSigned-off-by: {mail.AUTHOR}\n---\n"
        result[_file_name(number, patch.subject)] = text + mail.statistics(diff) + "\n" + diff + letter.tail()
    letter = mail.Letter(0, total, version, kernel)
    author = mail.AUTHOR.partition(" <")[0]
    body = cover.body.replace("@linux@", base.linux).replace("@debian@", base.debian).replace("@kernel@", kernel)
    shortlog = f"{author} ({total}):\n" + "".join(f"  {patch.subject}\n" for patch in patches)
    text = letter.head(cover.subject) + f"{body}\n{shortlog}\n{mail.statistics(tree.whole())}\n{letter.tail()}"
    return {"0000-cover-letter.patch": text, "series": "".join(f"{name}\n" for name in result), **result}
