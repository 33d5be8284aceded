# SPDX-License-Identifier: LGPL-2.1-only
"""A xenstored without Xen: a tree in memory behind a unix socket, for libxenstore and the xenstore-* tools.

The wire format is xen/include/public/io/xs_wire.h of Xen. Use it with XENSTORED_PATH=<socket>. Of a watch there is
only the event right after it was set. Not here, because no user of it needs them: permissions but for paths that are
denied, quotas, conflicts between transactions.
"""

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

_HEADER = struct.Struct("<IIII")  # type, request id, transaction id, length
_DIRECTORY, _READ, _WATCH, _UNWATCH, _TRANSACTION_START, _TRANSACTION_END = 1, 2, 4, 5, 6, 7
_GET_DOMAIN_PATH, _WRITE, _MKDIR, _RM, _SET_PERMS, _WATCH_EVENT = 10, 11, 12, 13, 14, 15
_ERROR, _IS_DOMAIN_INTRODUCED, _DIRECTORY_PART = 16, 17, 20
_HOME = "/local/domain/0"
_PAYLOAD_MAX = 4096

Tree = dict[str, bytes]


class _Refused(Exception):
    """An errno for the client."""


class Xenstore:
    """The tree. Paths that don't start with / are below /local/domain/0, as for dom0's clients."""

    def __init__(self) -> None:
        self.tree: Tree = {"/": b""}
        self.domains = {0}  # those that have been introduced
        self.privileged = True  # the client may ask for them
        self.denied: tuple[str, ...] = ()  # paths at which, and below which, the client may do nothing
        self.kept: tuple[str, ...] = ()  # nodes that it may not remove
        self.log: list[tuple[str, str]] = []  # every write and rm, in order: (path, value or "(rm)")
        self.asked = 0  # requests
        self._transactions: dict[int, tuple[Tree, list[tuple[str, bytes | None]]]] = {}  # None: removed
        self._next = 1
        self._lock = threading.Lock()

    @staticmethod
    def absolute(path: str) -> str:
        """The full path."""
        return path.rstrip("/") or "/" if path.startswith("/") else f"{_HOME}/{path.rstrip('/')}"

    def write(self, path: str, value: str) -> None:
        """Write a node and make its parents, outside of any transaction."""
        with self._lock:
            self._write(self.tree, self.absolute(path), value.encode(errors="surrogateescape"))

    def read(self, path: str) -> str | None:
        """The value of a node, None if it isn't there."""
        value = self.tree.get(self.absolute(path))
        return None if value is None else value.decode(errors="surrogateescape")

    def children(self, path: str) -> dict[str, str]:
        """The nodes right below path and their values."""
        top = self.absolute(path).rstrip("/") + "/"
        return {
            key[len(top) :]: value.decode(errors="surrogateescape")
            for key, value in self.tree.items()
            if key.startswith(top) and key != top and "/" not in key[len(top) :]
        }

    def answer(self, kind: int, transaction: int, payload: bytes) -> bytes:
        """The payload of the answer to a request. Raises _Refused."""
        with self._lock:
            self.asked += 1
            if kind == _TRANSACTION_START:
                number, self._next = self._next, self._next + 1
                self._transactions[number] = (dict(self.tree), [])
                return f"{number}".encode() + b"\0"
            if transaction:
                if transaction not in self._transactions:
                    raise _Refused(errno.ENOENT)
                if kind == _TRANSACTION_END:
                    _, written = self._transactions.pop(transaction)
                    for path, value in written if payload.startswith(b"T") else ():
                        if value is None:
                            self._remove(self.tree, path)
                        else:
                            self._write(self.tree, path, value)
                    return b"OK\0"
            tree, written = self._transactions[transaction] if transaction else (self.tree, [])
            name, _, rest = payload.partition(b"\0")
            if kind == _IS_DOMAIN_INTRODUCED and not self.privileged:
                raise _Refused(errno.EACCES)
            if kind == _IS_DOMAIN_INTRODUCED:
                return b"T\0" if int(name) in self.domains else b"F\0"
            if kind == _GET_DOMAIN_PATH:
                return b"/local/domain/" + name + b"\0"
            if kind in (_WATCH, _UNWATCH, _SET_PERMS):
                return b"OK\0"
            path = self.absolute(os.fsdecode(name))
            if any(path == place or path.startswith(f"{place}/") for place in self.denied):
                raise _Refused(errno.EACCES)
            if kind == _RM and path in self.kept:
                raise _Refused(errno.EACCES)
            if transaction and kind == _WRITE:
                tree[path] = rest
                written.append((path, rest))
                return b"OK\0"
            if transaction and kind == _RM and path in tree:
                written.append((path, None))
                return b"OK\0"
            return self._in_tree(tree, kind, path, rest)

    def _in_tree(self, tree: Tree, kind: int, path: str, rest: bytes) -> bytes:
        if kind == _WRITE:
            self._write(tree, path, rest)
            return b"OK\0"
        if kind == _MKDIR:
            if path not in tree:
                self._write(tree, path, b"")
            return b"OK\0"
        if path not in tree:
            raise _Refused(errno.ENOENT)
        if kind == _READ:
            return tree[path]
        if kind in (_DIRECTORY, _DIRECTORY_PART):
            below = path.rstrip("/") + "/"
            names = [key[len(below) :] for key in tree if key.startswith(below) and "/" not in key[len(below) :]]
            listing = b"".join(os.fsencode(name) + b"\0" for name in names if name)
            if kind == _DIRECTORY_PART:  # all of it at once: generation, listing, end
                listing = b"1\0" + listing[int(rest.rstrip(b"\0")) :] + b"\0"
            if len(listing) > _PAYLOAD_MAX:
                raise _Refused(errno.E2BIG)
            return listing
        if kind == _RM:
            self._remove(tree, path)
            return b"OK\0"
        raise _Refused(errno.ENOSYS)

    def _remove(self, tree: Tree, path: str) -> None:
        for key in [key for key in tree if key == path or key.startswith(path + "/")]:
            del tree[key]
        self.log.append((path, "(rm)"))

    def _write(self, tree: Tree, path: str, value: bytes) -> None:
        parent = path
        while (parent := parent.rpartition("/")[0]) and parent not in tree:
            tree[parent] = b""
        tree[path] = value
        self.log.append((path, os.fsdecode(value)))


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def _serve(store: Xenstore, connection: socket.socket) -> None:
    with connection, contextlib.suppress(ConnectionError):
        while True:
            kind, request, transaction, length = _HEADER.unpack(_receive(connection, _HEADER.size))
            payload = _receive(connection, length)
            try:
                answer = store.answer(kind, transaction, payload)
            except _Refused as refused:
                kind, answer = _ERROR, errno.errorcode[refused.args[0]].encode() + b"\0"
            connection.sendall(_HEADER.pack(kind, request, transaction, len(answer)) + answer)
            if kind == _WATCH:
                connection.sendall(_HEADER.pack(_WATCH_EVENT, 0, 0, len(payload)) + payload)


@contextlib.contextmanager
def running(path: Path) -> Iterator[Xenstore]:
    """Serves an empty store on the unix socket path."""
    store = Xenstore()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=_serve, args=(store, connection), daemon=True).start()

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield store
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
