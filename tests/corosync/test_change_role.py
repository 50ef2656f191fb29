# SPDX-License-Identifier: Apache-2.0
"""What the role corosync does with the wishes of an inventory: which member is asked what, in which order.

The role runs under ansible-playbook; two modules beside the play answer in the place of the members and keep every call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.cluster import corosync_export
from ansible.module_utils.pveguard.corosync import corosync_wish

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

MEMBER = '''#!/usr/bin/python
import json, pathlib
from ansible.module_utils.basic import AnsibleModule
KNOWN = ("cluster_name nodes update_nodes links token token_coefficient crypto allow_crypto_change totem logging quorum "
         "deadline_seconds expected_ids restore allow_quorum_loss state keys")
module = AnsibleModule({name: {"type": "raw", "no_log": False} for name in KNOWN.split()}, supports_check_mode=True)
place = pathlib.Path(module._remote_tmp)
given = {name: value for name, value in module.params.items() if value is not None}
kind = pathlib.Path("NAME").name
with open(place.parent / "calls", "a") as calls:
    calls.write(json.dumps([place.name, kind, module.check_mode, given]) + "\\n")
answers = json.loads((place.parent / "answers").read_text())
step = "restore" if "restore" in given else "see" if "expected_ids" in given else given.get("state", kind)
key = f"{step} {place.name}"
if key in answers.get("fail", []) and not module.check_mode:
    module.fail_json(msg=f"{key} went wrong")
changed = "restore" in given or ("expected_ids" not in given and "state" not in given and answers["changed"])
changed = changed or (kind == "corosync_restart" and "state" not in given)
texts = answers.get("texts", {})
module.exit_json(changed=changed, steps=int(changed), config_version=5, before="old", live_member_ids=[1, 2, 3],
                 text=texts.get(place.name, "new"), restart_needed=answers["restart_needed"] if changed else [])
'''


def play(tmp_path: Path, answers: dict[str, Any], *arguments: str, **wishes: Any) -> tuple[int, str, list[list[Any]]]:
    """Exit code, output and the calls ``[host, module, check mode, parameters]`` of the role on three members."""
    hosts: dict[str, Any] = {}
    for number in (1, 2, 3):
        (tmp_path / f"pve{number}").mkdir(exist_ok=True)
        corosync = {
            "copies_equal": True, "running": True, "two_node": False, "cluster": {"config_version": 4},
            "running_config_version": 4, "configured_token_ms": 3000, "node_id": number, "quorate": True,
            "cluster_name": "lab", "host": {"config_version": 4, "sha256": "s4"}, "live_member_ids": [1, 2, 3],
            **answers.get("facts", {}).get(f"pve{number}", {}),
        }  # fmt: skip
        hosts[f"pve{number}"] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "ansible_remote_tmp": str(tmp_path / f"pve{number}"),
            "corosync_cluster_name": "lab",
            "corosync_node_id": number,
            "corosync_links": [f"10.70.0.{number}"],
            "pveguard_plan": {"action": "adopt", "members": ["pve1", "pve2", "pve3"]},
            "pveguard_node": {"node": {"hostname": f"pve{number}", "corosync": corosync}},
            **wishes,
        }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    (tmp_path / "library").mkdir(exist_ok=True)
    for name in ("corosync_conf", "corosync_restart"):
        (tmp_path / f"library/{name}.py").write_text(MEMBER.replace("NAME", name))
    (tmp_path / "answers").write_text(json.dumps({"changed": True, "restart_needed": [], **answers}))
    (tmp_path / "calls").write_text("")
    tasks = [{"name": "Include", "ansible.builtin.include_role": {"name": "corosync"}}]
    (tmp_path / "play.yml").write_text(
        yaml.safe_dump([{"name": "Play", "hosts": "all", "gather_facts": False, "serial": 1, "tasks": tasks}])
    )
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin/journalctl").write_text("#!/bin/sh\necho corosync said: $*\n")
    (tmp_path / "bin/journalctl").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "hosts.yml", tmp_path / "play.yml", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=ROOT,
    )
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    return done.returncode, done.stdout + done.stderr, calls


def names(calls: list[list[Any]]) -> list[str]:
    """``module host``, with ``?`` for a call in check mode."""
    shown = []
    for host, module, check_mode, given in calls:
        what = "restore" if "restore" in given else "see" if "expected_ids" in given else module.removeprefix("corosync_")
        what = given.get("state", what)
        shown.append(f"{what} {host}{'?' if check_mode else ''}")
    return shown


JUDGED = ["conf pve1?", "conf pve1", "see pve1", "see pve2", "see pve3"]
RESTARTS = ["restart pve1?", "restart pve2?", "restart pve3?"]
ANNOUNCED = ["announced pve1", "announced pve2", "announced pve3"]
WITHDRAWN = ["withdrawn pve1", "withdrawn pve2", "withdrawn pve3"]


def test_an_inventory_that_asks_nothing_costs_nothing(tmp_path: Path) -> None:
    for wishes in ({}, {"corosync_token": 3000}):
        code, output, calls = play(tmp_path, {}, **wishes)
        assert (code, calls) == (0, []), output


def test_a_member_that_missed_a_change_is_reloaded_where_all_have_the_text(tmp_path: Path) -> None:
    lags = {"running_config_version": 2}
    code, output, calls = play(tmp_path, {"facts": {"pve3": lags}})
    assert (code, names(calls)) == (0, ["see pve3"]) and "WARNING" not in output, output
    # What no reload brings is said.
    code, output, calls = play(tmp_path, {"facts": {"pve3": lags}, "fail": ["see pve3"]})
    said = " ".join(output.split())
    assert code == 0 and "runs config_version 2, the file has 4; see pve3 went wrong" in said, output
    for others in (
        {"pve2": {"host": {"config_version": 4, "sha256": "other"}}},
        {"pve2": {"host": None, "copies_equal": False}, "pve3": {"running_config_version": 5}},
        {"pve3": {**lags, "live_member_ids": [1, 2, 3, 9]}},
    ):
        code, output, calls = play(tmp_path, {"facts": {"pve3": lags, **others}})
        assert (code, calls) == (0, []) and "corosync on pve3 runs config_version" in output, (others, output)


def test_one_member_writes_and_all_are_asked(tmp_path: Path) -> None:
    wishes: dict[str, Any] = {
        "corosync_token": 5000,
        "corosync_token_coefficient": 200,
        "corosync_link_options": [{"number": 0, "priority": 3}],
        "corosync_update_nodes": True,
        "corosync_crypto": {"hash": "sha512"},
        "corosync_totem": {"knet_mtu": 1400},
        "corosync_logging": {"debug": None},
        "corosync_quorum": {"wait_for_all": True},
    }
    code, output, calls = play(tmp_path, {}, **wishes)
    assert (code, names(calls)) == (0, JUDGED), output
    given = calls[1][3]
    assert given == calls[0][3]
    assert given["nodes"] == [
        {"name": f"pve{n}", "node_id": n, "links": [f"10.70.0.{n}"]} for n in (1, 2, 3)
    ] and given["update_nodes"] is True
    assert (given["token"], given["token_coefficient"], given["crypto"]) == (5000, 200, {"hash": "sha512"})
    assert (given["logging"], given["quorum"]) == ({"debug": None}, {"wait_for_all": True})
    assert calls[2][3]["expected_ids"] == [1, 2, 3]
    assert "changed=1" in output
    # A second time: one call.
    code, output, calls = play(tmp_path, {"changed": False}, **wishes)
    assert (code, names(calls)) == (0, ["conf pve1?"]) and "changed=1" not in output


def test_what_an_export_says_reaches_the_module_as_it_is_in_the_file(tmp_path: Path) -> None:
    text = (ROOT / "tests/corosync/configurations/many_links.conf").read_text()
    text = text.replace("  to_syslog: yes\n", "  to_syslog: no\n  timestamp: on\n  logfile_priority: notice\n")
    text = text.replace("aes128", "none").replace("  secauth: on\n", "  secauth: on\n  token_coefficient: 0\n")
    text = text.replace("corosync_votequorum\n", "corosync_votequorum\n  auto_tie_breaker_node: 1 3\n  wait_for_all: 1\n")
    found = corosync_export.Inventory({"lab": {"vars": corosync_export.desired(text)["cluster"], "hosts": {}}})
    wishes = yaml.safe_load(corosync_export.render(found))["all"]["children"]["lab"]["vars"]
    code, output, calls = play(tmp_path, {"changed": False}, **wishes)
    assert (code, names(calls)) == (0, ["conf pve1?"]) and "changed=1" not in output, output
    given = calls[0][3]
    assert (given["token_coefficient"], given["crypto"]) == (0, {"cipher": "none", "hash": "sha512"})
    assert given["logging"] == {"logfile_priority": "notice", "timestamp": "on", "to_syslog": "no"}
    wanted = corosync_wish.Wanted(
        cluster_name=given["cluster_name"],
        links=given["links"],
        token_coefficient_ms=given["token_coefficient"],
        **{name: given[name] for name in ("crypto", "totem", "logging", "quorum")},
    )
    assert corosync_wish.merge(text, wanted) == (text, [])


def test_only_a_token_that_differs_is_set(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, {}, corosync_token=5000)
    assert (code, names(calls)) == (0, JUDGED), output
    assert calls[1][3]["nodes"] == [] and "crypto" not in calls[1][3] and "token_coefficient" not in calls[1][3]
    # corosync.conf(5): 0 switches the coefficient off.
    code, output, calls = play(tmp_path, {}, corosync_token_coefficient=0)
    assert (code, names(calls), calls[1][3]["token_coefficient"]) == (0, JUDGED, 0), output


def test_a_dry_run_writes_nothing_and_says_the_change(tmp_path: Path) -> None:
    answers = {"restart_needed": ["totem.link_mode"]}
    code, output, calls = play(tmp_path, answers, "--check", corosync_totem={"link_mode": "rr"})
    assert code == 0 and all(call[2] for call in calls), output
    announced = [f"{name}?" for name in ANNOUNCED]
    assert names(calls) == ["conf pve1?", *RESTARTS, *announced, "conf pve1?", *RESTARTS] and "changed=4" in output


def test_restarts_one_after_the_other_and_no_further_after_a_failure(tmp_path: Path) -> None:
    answers: dict[str, Any] = {"restart_needed": ["totem.link_mode"]}
    wishes = {"corosync_totem": {"link_mode": "rr"}}
    code, output, calls = play(tmp_path, answers, **wishes)
    assert code == 0, output
    assert names(calls) == [JUDGED[0], *RESTARTS, *ANNOUNCED, *JUDGED[1:], "restart pve1", "restart pve2", "restart pve3"]
    assert calls[4][3]["keys"] == ["totem.link_mode"]
    answers["fail"] = ["corosync_restart pve2"]
    code, output, calls = play(tmp_path, answers, **wishes)
    assert code == 2 and names(calls)[-6:] == ["restart pve1", "restart pve2", "restore pve1", *WITHDRAWN], names(calls)
    assert calls[-4][3]["restore"] == "old"
    for part in ("corosync_restart pve2 went wrong", "The former text was put back", "restarted once more"):
        assert part in " ".join(output.split()), output


def test_restarts_that_cannot_reach_everyone_are_refused_first(tmp_path: Path) -> None:
    answers = {"restart_needed": ["totem.link_mode"]}
    wishes = {"corosync_totem": {"link_mode": "rr"}}
    code, output, calls = play(tmp_path, answers, "--limit", "pve1,pve2", **wishes)
    assert code == 2 and names(calls) == ["conf pve1?"]
    assert "node ids 3 are not in this run" in " ".join(output.split()), output
    code, output, calls = play(tmp_path, answers, "--limit", "pve1,pve2", **wishes, corosync_restart="never")
    assert (code, names(calls)) == (0, [JUDGED[0], *ANNOUNCED[:2], *JUDGED[1:-1]]), output
    assert "WARNING: totem.link_mode is in corosync.conf and takes effect when" in " ".join(output.split())


def test_what_a_member_does_not_show_is_undone(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, {"fail": ["see pve3"]}, corosync_token=5000)
    assert code == 2 and names(calls) == [*JUDGED, "restore pve1"], output
    for name in ("pve1", "pve2", "pve3"):
        assert f"Journal of {name}: corosync said: -q --no-pager" in " ".join(output.split()), output
    code, output, calls = play(tmp_path, {"texts": {"pve2": "another"}}, corosync_token=5000)
    assert code == 2 and names(calls) == [*JUDGED, "restore pve1"], output
    assert "not the same on every member" in output
    code, output, calls = play(tmp_path, {"fail": ["see pve3", "restore pve1"]}, corosync_token=5000)
    assert "could NOT be put back through pve1: restore pve1 went wrong" in " ".join(output.split()), output


def test_a_change_that_the_module_undid_is_not_undone_again(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, {"fail": ["corosync_conf pve1"]}, corosync_token=5000)
    assert code == 2 and names(calls) == JUDGED[:2], output
    assert "corosync_conf pve1 went wrong" in output and "put back" not in output


def test_restarts_alone_after_an_interrupted_run(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, {"changed": False}, "-e", "corosync_restart=always")
    assert code == 0 and names(calls)[-3:] == ["restart pve1", "restart pve2", "restart pve3"], output


def test_what_an_interrupted_run_left_is_restarted_where_it_waits(tmp_path: Path) -> None:
    wishes = {"corosync_totem": {"link_mode": "rr"}}
    waits = {"facts": {name: {"restart_pending": ["totem.link_mode"]} for name in ("pve2", "pve3")}}
    answers: dict[str, Any] = {"changed": False, **waits}
    code, output, calls = play(tmp_path, answers, **wishes)
    assert (code, names(calls)) == (0, [JUDGED[0], *RESTARTS[1:], *JUDGED[1:], "restart pve2", "restart pve3"]), output
    assert "WARNING" not in output
    # One that fails is not taken for a change to be undone, and what waits goes on waiting.
    code, output, calls = play(tmp_path, {**answers, "fail": ["corosync_restart pve2"]}, **wishes)
    assert code == 2 and names(calls)[-1] == "restart pve2" and "corosync_restart pve2 went wrong" in output, output
    # Asked for nothing any more, or never: it is said, and nothing is restarted.
    code, output, calls = play(tmp_path, answers)
    assert (code, calls) == (0, []) and output.count("WARNING: totem.link_mode is in corosync.conf") == 2, output
    code, output, calls = play(tmp_path, answers, **wishes, corosync_restart="never")
    assert (code, names(calls)) == (0, JUDGED[:1]) and "takes effect on pve3 when corosync is" in " ".join(output.split())


def test_a_former_text_that_could_not_be_put_back_withdraws_nothing(tmp_path: Path) -> None:
    answers = {"restart_needed": ["totem.link_mode"], "fail": ["see pve3", "restore pve1"]}
    code, output, calls = play(tmp_path, answers, corosync_totem={"link_mode": "rr"})
    assert code == 2 and names(calls)[-1] == "restore pve1", output
