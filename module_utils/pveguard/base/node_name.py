# SPDX-License-Identifier: Apache-2.0
"""The name of a node as the cluster file system, pvecm and HA take it."""

from __future__ import annotations

import os


def own(hostname: str | None = None) -> str:
    """The host name up to its first dot. ``hostname``: the kernel's by default, a full domain name where that was set."""
    return (os.uname().nodename if hostname is None else hostname).partition(".")[0]
