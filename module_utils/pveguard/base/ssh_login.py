# SPDX-License-Identifier: Apache-2.0
"""The ssh login that this command came by.

``pve-state`` loads this: no pathlib at run time.
"""

from __future__ import annotations

import os

#: Processes between a module and the login's shell are few.
_MOST_ABOVE = 32


def connection() -> str:
    """SSH_CONNECTION of this process or of one above it: client, its port, own address, own port; "" for a local session.

    sudo and other become methods take it out of the environment; it is that of a process above then.
    """
    return os.environ.get("SSH_CONNECTION") or above()


def above() -> str:
    """SSH_CONNECTION with which this process or one above it was started."""
    pid = os.getpid()
    for _ in range(_MOST_ABOVE):
        try:
            with open(f"/proc/{pid}/environ", "rb") as handle:
                for entry in handle.read().split(b"\0"):
                    if entry.startswith(b"SSH_CONNECTION="):
                        return entry[15:].decode()
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
                pid = int(handle.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
        if pid <= 1:
            break
    return ""
