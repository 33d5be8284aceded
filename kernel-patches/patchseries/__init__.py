# SPDX-License-Identifier: GPL-2.0-only
"""Makes patch series for kernels out of the driver's one source."""

from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
KERNELS = ("6.1", "6.12")


class SeriesError(Exception):
    """The series can't be made; the message names the file and the remedy."""
