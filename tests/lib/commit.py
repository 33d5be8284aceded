# SPDX-License-Identifier: LGPL-2.1-only
"""The commit that a page of results names, and what of it the results are of."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def head(*paths: str) -> str:
    """The commit, with + if the tree has changes below one of these paths; "unknown" where there is no git."""
    return _named("HEAD", *paths)


def tree(path: str) -> str:
    """What names all that is below a path, whatever the commit; + and "unknown" as of head()."""
    return _named(f"HEAD:{path}", path)


def _named(revision: str, *paths: str) -> str:
    name = _git("rev-parse", "--short=12", revision)
    return name + ("+" if name and _git("status", "--porcelain", "--", *paths) else "") or "unknown"
