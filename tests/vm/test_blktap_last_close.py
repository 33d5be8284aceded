# SPDX-License-Identifier: LGPL-2.1-only
"""What a request's end releases last is not for its server to release: the last close of a disk waits for that very server."""

import pytest

from tests.lib.toytap import Tap

ON_BOTH_KERNELS = pytest.mark.parametrize("release", [12, 13], ids="debian{}".format, scope="session")

# Dirty pages by one descriptor, which is not the last; then a read by another one, of which nothing but the read itself is left
# when its server answers.
LEAVE_A_READ = r"""
import ctypes, mmap, os, signal, struct, sys

SETUP, GETEVENTS, SUBMIT = 206, 208, 209
libc = ctypes.CDLL(None, use_errno=True)
device, task, dirty = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def call(*args):
    result = libc.syscall(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


context = ctypes.c_ulong(0)
call(SETUP, 1, ctypes.byref(context))
page = mmap.mmap(-1, 4096)
writer = os.open(device, os.O_RDWR)
os.write(writer, b"d" * dirty)
reader = os.open(device, os.O_RDONLY | os.O_DIRECT)
os.close(writer)
os.kill(task, signal.SIGSTOP)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
request = ctypes.create_string_buffer(struct.pack("<QIIHhIQQqQII", 0, 0, 0, 0, 0, reader, address, 4096, 64 << 20, 0, 0, 0))
one = (ctypes.c_void_p * 1)(ctypes.addressof(request))
assert call(SUBMIT, context, 1, one) == 1
os.close(reader)
os.kill(task, signal.SIGCONT)
event = ctypes.create_string_buffer(32)
assert call(GETEVENTS, context, 1, 1, event, None) == 1
assert struct.unpack("<QQqq", event.raw)[2] == 4096
"""
DIRTY = 4 << 20


@ON_BOTH_KERNELS
def test_a_read_that_outlives_its_descriptor_does_not_have_the_server_wait_for_itself(tap: Tap) -> None:
    tap.start()
    periods = "/proc/sys/vm/dirty_writeback_centisecs"
    before = tap.bed.run(f"cat {periods}; echo 0 > {periods}").stdout.strip()
    try:
        tap.bed.put("/root/leave-a-read", LEAVE_A_READ.encode())
        tap.bed.run(f"timeout 60 python3 /root/leave-a-read {tap.device} {tap.attribute('task')} {DIRTY}")
        tap.bed.run(f"timeout 30 dd if={tap.device} of=/dev/null bs=4k count=1 skip=9000 iflag=direct status=none")
        # written by the last close, whoever has that done
        tap.bed.wait_for(f'test "$(head -c {DIRTY} {tap.file} | tr -d d | wc -c)" = 0', 30, 0.2)
        tap.remove()
    finally:
        tap.bed.run(f"echo {before} > {periods}")
