# SPDX-License-Identifier: LGPL-2.1-only
"""Tables for people."""

from collections.abc import Collection, Sequence

_UNITS = ("B", "K", "M", "G", "T", "P")


def human(size: int | None) -> str | None:
    """Bytes with a unit of 1024 and at most one decimal, as ls -h has it: 20G, 1.5G."""
    if size is None:
        return None
    value, unit = float(size), 0
    while round(value, 1) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f}".removesuffix(".0") + (_UNITS[unit] if unit else "")


def printable(text: str) -> str:
    """A line break or an escape sequence in a name must not reach the terminal."""
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else f"\\x{ord(c):02x}" for c in text)


def render(
    names: Sequence[str],
    rows: Sequence[Sequence[object | None]],
    *,
    right: Collection[str] = (),
    below: Sequence[str | None] = (),
) -> str:
    """A line for the names and one for each row, None as "-"; right: columns that are aligned there; below: what
    follows each row in a line of its own. "" without rows."""
    if not rows:
        return ""
    cells = [["-" if value is None else printable(str(value)) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = []
    for number, row in enumerate([list(names), *cells]):
        aligned = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, names, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
        more = below[number - 1] if number and below else None
        if more:
            lines.append(f"    {printable(more)}")
    return "\n".join(lines) + "\n"
