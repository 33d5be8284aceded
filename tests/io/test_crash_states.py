# SPDX-License-Identifier: LGPL-2.1-only
"""A share of the crash states that `make soak` looks at (tests/soak/crash.py).

CRASH_SEED=n: those of that seed again. CRASH_STATES=n: so many.
"""

import os
import random
from pathlib import Path

import pytest

from tests.soak.crash import LABELS, run_slice

pytestmark = [pytest.mark.io, pytest.mark.slow]


def test_no_cut_off_operation_loses_anything(tmp_path: Path) -> None:
    seed = int(os.environ.get("CRASH_SEED") or random.randrange(1 << 32))
    states = int(os.environ.get("CRASH_STATES") or 2000)
    print(f"CRASH_SEED={seed} CRASH_STATES={states}", flush=True)
    result = run_slice(seed, states, tmp_path)
    print(f"{result.states} states: {result.operations}")
    assert not result.losses, "\n".join(result.losses)
    assert result.states >= states
    assert set(result.operations) >= LABELS
