# SPDX-License-Identifier: Apache-2.0
"""What Corosync's programs print. Imports little, as programs on a node start with it."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def parse_cmap(output: str) -> dict[str, str]:
    """``{key: value}`` of ``corosync-cmapctl``."""
    found = re.findall(r"^(\S+) \([a-z0-9]+\) = (.*)$", output, flags=re.MULTILINE)
    return {key: value.strip() for key, value in found}


def parse_quorum(output: str) -> dict[str, Any]:
    """Quorum, votes, own and live node ids of ``corosync-quorumtool -s`` (it exits with 2 without quorum).

    Keys: quorate (bool, None where it is not said), node_id, expected_votes, total_votes (int or None), live_member_ids (list of
    int, in order).
    """
    values = dict(re.findall(r"^([A-Z][A-Za-z ]+):[ \t]*(.*)$", output, flags=re.MULTILINE))
    _, _, membership = output.partition("Membership information")
    return {
        "quorate": {"Yes": True, "No": False}.get(values.get("Quorate", "").strip()),
        "node_id": number(values.get("Node ID")),
        "expected_votes": number(values.get("Expected votes")),
        "total_votes": number(values.get("Total votes")),
        # A line of a QDevice has node id 0. An id of ten digits fills its column: no blank stands before it.
        "live_member_ids": sorted(
            int(each)
            for each in re.findall(r"^[ \t]*([0-9]+)[ \t]+[0-9]+[ \t]", membership, flags=re.MULTILINE)
            if int(each)
        ),
    }


def number(value: str | None) -> int | None:
    """The number that a text begins with."""
    match = re.match(r"\s*([0-9]+)", value or "")
    return int(match.group(1)) if match else None
