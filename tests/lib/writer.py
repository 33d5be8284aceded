# SPDX-License-Identifier: LGPL-2.1-only
"""A guest that writes numbers to its disk, one after the other, for as long as it finds the last one there: for migrations.

It leaves its CPU to others between two, else a migration takes minutes.
"""

from tests.lib import tapdisks
from tests.lib.vm import Bed

MEGABYTES = 8
STEP = 7
"""Sectors between two numbers."""
LAST = MEGABYTES * 2048 // STEP - 1
# Each number goes to a sector of its own, after the one before was found there.
WRITER = f"""
wait_for_disk xvda
number=1
found() {{ dd if=/dev/xvda bs=512 skip=$(($1 * {STEP})) count=1 iflag=direct 2>/dev/null | tr -d '\\0'; }}
while [ $number -lt {LAST} ]; do
	[ $number = 1 ] || [ "$(found $((number - 1)))" = "number $((number - 1))" ] || break
	echo "number $number" | dd of=/dev/xvda bs=512 seek=$((number * {STEP})) conv=sync oflag=direct 2>/dev/null || break
	echo "wrote $number"
	usleep 100000
	number=$((number + 1))
done
echo "lost" | dd of=/dev/xvda bs=512 seek=0 conv=sync,fsync 2>/dev/null
sleep 1000
"""


def numbers(bed: Bed, spec: str) -> int:
    """How many there are on the disk, one after the other from 1 on. Asserts that there is nothing else."""
    data = tapdisks.read(bed, spec, MEGABYTES * 2048)
    expected = bytearray(len(data))
    number = 1
    while data[number * STEP * 512] if number < LAST else 0:
        text = f"number {number}\n".encode()
        expected[number * STEP * 512 : number * STEP * 512 + len(text)] = text
        number += 1
    assert data == expected, f"after number {number - 1}"
    return number - 1
