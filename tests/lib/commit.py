# SPDX-License-Identifier: LGPL-2.1-only
"""The commit that a page of results names."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def head(*paths: str) -> str:
    """The commit, with + if the tree has changes below one of these paths; "unknown" where there is no git."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    return commit + ("+" if commit and _git("status", "--porcelain", "--", *paths) else "") or "unknown"
