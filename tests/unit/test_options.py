# SPDX-License-Identifier: LGPL-2.1-only
"""Where options may stand in xenblk's own commands."""

import pytest

from xenblk import cli

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("libxl_binding")]


@pytest.mark.parametrize(
    ("words", "ordered"),
    [
        (["web", "--name=t", "xvdb"], ["--name=t", "web", "xvdb"]),
        (["web", "--name", "t", "--json", "xvdb"], ["--name", "t", "--json", "web", "xvdb"]),
        (["-f", "web", "--", "-xvdb", "-f"], ["-f", "web", "--", "-xvdb", "-f"]),
        (["-"], ["-"]),
        (["web", "--name"], ["--name", "web"]),
    ],
)
def test_options_go_before_names(words: list[str], ordered: list[str]) -> None:
    assert cli.options_first(words) == ordered
