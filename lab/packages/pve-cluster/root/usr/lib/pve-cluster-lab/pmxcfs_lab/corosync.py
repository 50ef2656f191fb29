# SPDX-License-Identifier: Apache-2.0
"""libcpg and libquorum through ctypes. A result of 1 is CS_OK, 6 is CS_ERR_TRY_AGAIN."""

from __future__ import annotations

import ctypes
import errno
import os

from .dcdb import Member

CS_OK = 1
CS_ERR_TRY_AGAIN = 6
CS_DISPATCH_ALL = 2
CS_TRACK_CURRENT_AND_CHANGES = 0x01 | 0x02
CPG_TYPE_AGREED = 2
GROUP = b"pmxcfs_lab_v1"


class CorosyncError(OSError):
    """A call failed with this corosync result code."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(errno.ENOTCONN, f"{call} failed: {code}")
        self.call = call
        self.code = code


def _check(call: str, code: int) -> None:
    if code != CS_OK:
        raise CorosyncError(call, code)


class _CpgName(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint32), ("value", ctypes.c_char * 128)]


class _CpgAddress(ctypes.Structure):
    _fields_ = [("nodeid", ctypes.c_uint32), ("pid", ctypes.c_uint32), ("reason", ctypes.c_uint32)]


_DELIVER = ctypes.CFUNCTYPE(
    None,
    ctypes.c_uint64,
    ctypes.POINTER(_CpgName),
    ctypes.c_uint32,
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.c_size_t,
)
_ADDRESSES = ctypes.POINTER(_CpgAddress)
_CONFCHG = ctypes.CFUNCTYPE(
    None,
    ctypes.c_uint64,
    ctypes.POINTER(_CpgName),
    _ADDRESSES,
    ctypes.c_size_t,
    _ADDRESSES,
    ctypes.c_size_t,
    _ADDRESSES,
    ctypes.c_size_t,
)
_NOTIFY = ctypes.CFUNCTYPE(
    None,
    ctypes.c_uint64,
    ctypes.c_uint32,
    ctypes.c_uint64,
    ctypes.c_uint32,
    ctypes.POINTER(ctypes.c_uint32),
)


class _CpgCallbacks(ctypes.Structure):
    _fields_ = [("deliver", _DELIVER), ("confchg", _CONFCHG)]


class _QuorumCallbacks(ctypes.Structure):
    _fields_ = [("notify", _NOTIFY)]


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]


class Quorum:
    """Tells whether the partition is quorate and which node ids are in it."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libquorum.so.5")
        self._handle = ctypes.c_uint64()
        # Callbacks only collect: an exception inside one would be swallowed by ctypes.
        self._events: list[tuple[bool, list[int]]] = []

        def notify(
            handle: int, quorate: int, ring: int, count: int, view: ctypes._Pointer[ctypes.c_uint32]
        ) -> None:
            self._events.append((bool(quorate), [view[number] for number in range(count)]))

        self._callbacks = _QuorumCallbacks(_NOTIFY(notify))
        handle, callbacks, kind = ctypes.byref(self._handle), ctypes.byref(self._callbacks), ctypes.c_uint32()
        _check("quorum_initialize", self._lib.quorum_initialize(handle, callbacks, ctypes.byref(kind)))
        try:
            code = self._lib.quorum_trackstart(self._handle, CS_TRACK_CURRENT_AND_CHANGES)
            _check("quorum_trackstart", code)
            number = ctypes.c_int()
            _check("quorum_fd_get", self._lib.quorum_fd_get(self._handle, ctypes.byref(number)))
        except CorosyncError:
            self.close()
            raise
        self.fd = number.value

    def dispatch(self) -> list[tuple[bool, list[int]]]:
        """What was told since the last call: (quorate, node ids in the partition)."""
        code = self._lib.quorum_dispatch(self._handle, CS_DISPATCH_ALL)
        if code != CS_ERR_TRY_AGAIN:
            _check("quorum_dispatch", code)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._lib.quorum_finalize(self._handle)


class Cpg:
    """The closed process group; implements dcdb.Transport."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libcpg.so.4")
        self._handle = ctypes.c_uint64()
        self._joined = False
        self._name = _CpgName(len(GROUP), GROUP)
        self._events: list[tuple[Member, bytes] | list[Member]] = []

        def deliver(handle: int, group: object, node: int, process: int, message: int, size: int) -> None:
            self._events.append(((node, process), ctypes.string_at(message, size)))

        def confchg(
            handle: int,
            group: object,
            members: ctypes._Pointer[_CpgAddress],
            count: int,
            left: object,
            left_count: int,
            joined: object,
            joined_count: int,
        ) -> None:
            self._events.append([(members[number].nodeid, members[number].pid) for number in range(count)])

        self._callbacks = _CpgCallbacks(_DELIVER(deliver), _CONFCHG(confchg))
        handle, callbacks = ctypes.byref(self._handle), ctypes.byref(self._callbacks)
        _check("cpg_initialize", self._lib.cpg_initialize(handle, callbacks))
        try:
            node = ctypes.c_uint32()
            _check("cpg_local_get", self._lib.cpg_local_get(self._handle, ctypes.byref(node)))
            self._me = (node.value, os.getpid())
            number = ctypes.c_int()
            _check("cpg_fd_get", self._lib.cpg_fd_get(self._handle, ctypes.byref(number)))
        except CorosyncError:
            self.close()
            raise
        self.fd = number.value

    @property
    def me(self) -> Member:
        return self._me

    def join(self) -> bool:
        """False = try again later."""
        if not self._joined:
            code = self._lib.cpg_join(self._handle, ctypes.byref(self._name))
            if code == CS_ERR_TRY_AGAIN:
                return False
            _check("cpg_join", code)
            self._joined = True
        return True

    def mcast(self, message: bytes) -> bool:
        vector = _Iovec(message, len(message))
        code = self._lib.cpg_mcast_joined(self._handle, CPG_TYPE_AGREED, ctypes.byref(vector), 1)
        if code == CS_ERR_TRY_AGAIN:
            return False
        _check("cpg_mcast_joined", code)
        return True

    def dispatch(self) -> list[tuple[Member, bytes] | list[Member]]:
        """What happened, in order: (sender, message), or the list of members after a membership change."""
        code = self._lib.cpg_dispatch(self._handle, CS_DISPATCH_ALL)
        if code != CS_ERR_TRY_AGAIN:
            _check("cpg_dispatch", code)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._lib.cpg_finalize(self._handle)
