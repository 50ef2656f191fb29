# SPDX-License-Identifier: Apache-2.0
"""What waited in rrdcached when a node went off is in the files: nothing was to be flushed for an hour."""

from __future__ import annotations

from typing import Any

#: Values come every ten seconds; those of another node stop with it, which may go off earlier.
SECONDS = 45


def test_values_until_the_stop_are_in_the_files(everywhere: Any) -> None:
    for name, node in everywhere("statistics.py").items():
        assert node["stopped"], f"{name}: no stop of rrdcached in the journal of the boot before"
        late = {path: node["stopped"] - last for path, last in node["files"].items() if last < node["stopped"] - SECONDS}
        assert node["files"] and not late, f"{name}: seconds before the stop: {late}"
