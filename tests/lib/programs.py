# SPDX-License-Identifier: LGPL-2.1-only
"""Where the built programs are.

The quick tiers run the sanitizer build, or the one that XENBLK_MODE names.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

RECORDED = os.environ.get("XENBLK_RECORDED") or "release"
"""The build whose programs are recorded, no sanitizer's: a mode, or a directory (tests/soak/mutants.py)."""


def program(name: str, mode: str | None = None, source: str = "tapdisk-c") -> Path:
    """The path of a program of tapdisk-c ("tap-ctl", "tests/tool-disk"), or of another directory of sources.

    Raises FileNotFoundError, naming the command that builds it.
    """
    build = mode or os.environ.get("XENBLK_MODE") or "asan"
    path = ROOT / "build" / build / Path(source).name / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: not built; run make -C {source} MODE={build}")
    return path
