# SPDX-License-Identifier: Apache-2.0
"""Mounts that no other process keeps."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

CLONE_NEWNS = 0x00020000  # sched.h; os.unshare() and os.setns() come with Python 3.12


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """What is mounted inside is seen by this thread and its children only. Needs root.

    Every mount namespace that is made elsewhere in the meantime (a test beside this one, a service of the machine)
    starts with a copy of all mounts that its maker sees. A copy keeps a file system in use after its umount: no
    check of the disk and no new mount would get what they ask for.
    """
    folder = os.getcwd()
    with open("/proc/thread-self/ns/mnt") as outside:
        _call("unshare", CLONE_NEWNS)
        try:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            yield
        finally:
            _call("setns", outside.fileno(), CLONE_NEWNS)
            os.chdir(folder)  # setns() leads to /


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
