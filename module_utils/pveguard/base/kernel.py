# SPDX-License-Identifier: Apache-2.0
"""What a version of the kernel can do."""

from __future__ import annotations

import os
import re


def noswap_supported(release: str | None = None) -> bool:
    """tmpfs knows ``noswap`` since Linux 6.4. ``release``: of a node's kernel, this machine's without it."""
    match = re.match(r"(\d+)\.(\d+)", release if release is not None else os.uname().release)
    return match is not None and (int(match[1]), int(match[2])) >= (6, 4)
