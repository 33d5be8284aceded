# SPDX-License-Identifier: LGPL-2.1-only
"""What a bed's processes wait for, asked when a command in it does not end."""

MAX_LINES = 60
SECONDS = 15.0

# Only what the kernel tells without waiting itself: stacks of what can't be killed, and the driver's disks.
SCRIPT = r"""
for task in /proc/[0-9]*/task/[0-9]*; do
	read -r state < "$task/stat" || continue
	case ${state##*) } in D*) ;; *) continue ;; esac
	echo "$(cat "$task/comm") ($(basename "$task")):" \
		"$(sed 's/^\[<0>\] //; s/\/0x.*//; /^\(io_schedule\|schedule\)/d' "$task/stack" 2>/dev/null | head -n 14 | tr '\n' ' ')"
done 2>/dev/null | head -n 30
for minor in /sys/class/blktap2/blktap[0-9]*; do
	[ -e "$minor" ] || continue
	echo "$(basename "$minor"): $(cat "$minor/state") task $(cat "$minor/task")" \
		"$(cd "$minor/counters" && grep -v '^0$' * | tr '\n' ' ')"
	task=$(cat "$minor/task")
	for stack in /proc/"$task"/task/*/stack; do
		[ -e "$stack" ] && echo "  $(cat "${stack%stack}comm"): $(sed 's/^\[<0>\] //; s/\/0x.*//' "$stack" | head -n 8 | tr '\n' ' ')"
	done
done
grep -E '^(MemFree|MemAvailable|Dirty|Writeback|SwapFree):' /proc/meminfo | tr -s ' ' | tr '\n' ' '
"""

reports: list[str] = []
"""Of this session, for its end: the log of a failed test may be long."""


def note(report: str) -> str:
    """Keep a report for the end of the session."""
    lines = report.splitlines()
    text = "\n".join(lines[:MAX_LINES] + (["…"] if len(lines) > MAX_LINES else []))
    reports.append(text)
    return text
