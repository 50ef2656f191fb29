# SPDX-License-Identifier: Apache-2.0
"""Where the role measures the write amplification, with a module that only says that it was called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.write_report.test_report import node
from tests.write_report.test_roles import play

pytestmark = pytest.mark.slow

MODULE = """
import json, os, sys
from ansible.module_utils.basic import AnsibleModule
spec = dict(cases=dict(type="list", elements="dict"), device_write_budget_bytes=dict(type="int"), budget_name=dict())
module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
with open({calls!r}, "a") as stream:
    stream.write(json.dumps(module.params) + "\\n")
module.fail_json(msg="no quorum here")
"""


def test_only_where_wanted_and_on_one_member_of_each_cluster(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    calls = tmp_path / "calls"
    (tmp_path / "library/write_amplification.py").write_text(MODULE.format(calls=str(calls)))
    lost = node(pmxcfs={"mode": "cluster", "quorate": False})
    alone = node(pmxcfs={"mode": "local", "quorate": None})
    nodes = {"a": lost, "b": node(), "c": node(), "d": alone}
    base: dict[str, Any] = {"pveguard_reports_dir": str(tmp_path / "reports"), "write_report_measure": "never"}
    hosts = {name: {**base, "pveguard_node": {"node": facts}} for name, facts in nodes.items()}
    code, output = play(tmp_path, hosts, [{"name": "write_report"}])
    assert code == 0 and not calls.exists(), output

    wanted = ["-e", "write_report_amplification=true", "-e", "write_report_amplification_budget_bytes=5000"]
    code, output = play(tmp_path, hosts, [{"name": "write_report"}], *wanted)
    assert code == 0, output
    called = [json.loads(line) for line in calls.read_text().splitlines()]
    assert len(called) == 2, "b for its cluster, and d"
    assert called[0]["device_write_budget_bytes"] == 5000
    assert called[0]["budget_name"] == "write_report_amplification_budget_bytes"
    assert [case["file_bytes"] for case in called[0]["cases"]] == [1 << 20, 64 << 10]
    assert output.count("not measured: no quorum here") == 2
    assert "ok: [b] =>" in output and "ok: [d] =>" in output and "changed=1" not in output
    # A node that could not be measured has its row in the report.
    assert set(json.loads((tmp_path / "reports/latest.json").read_text())["nodes"]) == set(nodes)
