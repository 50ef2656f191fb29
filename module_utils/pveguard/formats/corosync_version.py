# SPDX-License-Identifier: Apache-2.0
"""The config_version of a corosync.conf, without its document. Imports little, as programs on a node start with it."""

from __future__ import annotations

import re

#: config_version has 64 bits, without a sign (totem.config_version in cmap).
MAX_CONFIG_VERSION = 2**64 - 1


def config_version(text: str) -> int | None:
    """The config_version of a corosync.conf as the daemon reads it, also of one that cannot be parsed; None where it has none,
    or one that is no number. What Corosync makes of it is in :mod:`corosync_conf`.
    """
    match = re.search(r"^\s*config_version\s*:\s*0*([0-9]+)\s*$", text, re.MULTILINE)
    # Of more digits than the daemon's 64 bits hold it is read as the largest number. Python reads no 5,000 digits at all.
    return min(int(match.group(1)[:21]), MAX_CONFIG_VERSION) if match else None
