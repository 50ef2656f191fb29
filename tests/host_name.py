# SPDX-License-Identifier: Apache-2.0
"""Another host name for a test and its children, in a UTS namespace of their own."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWUTS = 0x04000000


@contextmanager
def host_named(name: str) -> Iterator[None]:
    """The calling thread, and what it starts, see ``name`` as the host's name. Needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    former = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(_CLONE_NEWUTS):
            raise OSError(ctypes.get_errno(), "unshare")
        socket.sethostname(name)
        try:
            yield
        finally:
            if libc.setns(former, _CLONE_NEWUTS):
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(former)
