# SPDX-License-Identifier: Apache-2.0
"""The watchdog of these nodes is real: so the tests that no node is reset can fail."""

from __future__ import annotations

from pathlib import Path

import ha_interruptions


def test_the_wrong_order_resets_a_node(nodes: ha_interruptions.Nodes, tmp_path: Path) -> None:
    campaign = ha_interruptions.Campaign(nodes, "1", "", tmp_path)
    campaign.begin()
    campaign.prove()
    assert campaign.totals.resets_for_the_wrong_order == 1
    # And it comes back as a member whose HA runs.
    nodes.wait("HA does not come back", lambda seen: ha_interruptions.unlike("enabled", seen))
