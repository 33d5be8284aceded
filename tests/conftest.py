# SPDX-License-Identifier: LGPL-2.1-only
"""Fixtures that all tiers share: beds, booted once and used by many tests.

The marker of a tier follows from the directory, so that no test is without one.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.terminal import TerminalReporter

from tests.lib import stuck
from tests.lib.beds import BedPool, Beds

TIERS = ("unit", "io", "vm", "xen", "hosts")
# for kernels with checkers: `make check-kernels`
collect_ignore = [] if os.environ.get("XENBLK_KERNEL") else ["kernels"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier; the slow tiers run last."""
    for item in items:
        tier = item.path.relative_to(Path(__file__).parent).parts[0]
        if tier in TIERS:
            item.add_marker(tier)
    items.sort(key=lambda item: next((i for i, t in enumerate(TIERS) if item.get_closest_marker(t)), 0))


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """pytest's own, gone after a test that passed: one run's images would be 20 GiB."""
    failed = request.session.testsfailed
    yield tmp_path
    if request.session.testsfailed == failed:
        subprocess.run(["rm", "-rf", "--one-file-system", "--", tmp_path], check=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist: hand what those waited for who did not end to the process that writes the summary."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["stuck"] = stuck.reports


class Workers:
    """What xdist calls in the process that writes the summary."""

    def pytest_testnodedown(self, node: Any) -> None:
        """Take it. A worker that crashed hands over nothing."""
        stuck.reports.extend(getattr(node, "workeroutput", {}).get("stuck", []))


def pytest_configure(config: pytest.Config) -> None:
    """Without xdist there is nothing to take."""
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(Workers())


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say last what those waited for who did not end."""
    if stuck.reports:
        terminalreporter.section("commands in beds that did not end")
        terminalreporter.write_line("\n\n".join(stuck.reports))


@pytest.fixture(scope="session")
def bed_pool() -> Iterator[BedPool]:
    """The running beds of this session."""
    pool = BedPool()
    yield pool
    pool.close()


@pytest.fixture
def beds(bed_pool: BedPool) -> Iterator[Beds]:
    """`beds(release=12, xen=True, ...)` (the fields of BedSpec) gives a running bed, shared with other tests;
    `beds.fresh(...)` one of this test's own. The kernel's log of each is judged after the test."""
    user = Beds(bed_pool)
    yield user
    findings = user.finish()
    if findings:
        pytest.fail("\n".join(findings), pytrace=False)
