# SPDX-License-Identifier: Apache-2.0
"""The modules as Ansible runs them: check mode on a host that has nothing, answers and refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.detached import DetachedError
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.cluster import cluster_member, pmxcfs_package
from ansible.module_utils.pveguard.cluster.cluster_member import Judgement, Request
from ansible.module_utils.pveguard.corosync import corosync_change, corosync_info
from ansible.module_utils.pveguard.corosync.corosync_change import Wanted
from ansible.module_utils.pveguard.formats import corosync_conf, corosync_edit

RunModule = Callable[..., dict[str, Any]]
NODE = {"name": "pve2", "node_id": 2, "links": ["10.77.0.2"]}
TEXT = corosync_edit.render_new("lab", [{"name": "pve1", "node_id": 1, "links": ["10.77.0.1"]}])
MEMBER = {
    "state": "joined",
    "cluster_name": "lab",
    "node_id": 2,
    "links": ["10.77.0.2"],
}


def info(**more: Any) -> dict[str, Any]:
    copy = {"sha256": "s", "config_version": 1, "text": TEXT}
    return {
        "cluster": copy,
        "host": copy,
        "copies_equal": True,
        "running": True,
        "quorate": True,
        "members": [{"id": 1, "name": "pve1", "addresses": ["10.77.0.1"]}],
        "live_member_ids": [1],
        "running_config_version": 1,
        "member_config_versions": {"1": 1},
        **more,
    }


def test_corosync_conf_without_a_cluster(run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        corosync_info, "collect", lambda **_: info(cluster=None, host=None, live_member_ids=[])
    )
    result = run_module("corosync_conf", nodes=[NODE], _ansible_check_mode=True)
    assert result["changed"] is True and result["config_version"] is None
    result = run_module("corosync_conf", nodes=[NODE])
    assert result["failed"] and "not a member of a cluster" in result["msg"]


def test_corosync_conf_shows_what_it_would_write(
    run_module: RunModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corosync_info, "collect", lambda **_: info())
    result = run_module(
        "corosync_conf", cluster_name="lab", nodes=[NODE], token=5000, _ansible_check_mode=True
    )
    assert result["changed"] is True and result["config_version"] == 2
    assert result["diff"]["before"] == TEXT
    assert "token: 5000" in result["diff"]["after"] and "name: pve2" in result["diff"]["after"]
    result = run_module("corosync_conf", cluster_name="lab", token=3000, _ansible_check_mode=True)
    assert result["changed"] is False
    # A member that missed a change: the reload that would be issued is a change.
    monkeypatch.setattr(corosync_info, "collect", lambda **_: info(member_config_versions={"1": 1, "2": 0}))
    result = run_module("corosync_conf", cluster_name="lab", token=3000, _ansible_check_mode=True)
    assert result["changed"] is True and result["reloaded"] is True and result["steps"] == 0


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ({"quorate": False}, "has no quorum"),
        ({"running": False}, "systemctl start corosync"),
        ({"copies_equal": False}, "differs from /etc/pve/corosync.conf"),
    ],
)
def test_corosync_conf_refuses_also_in_check_mode(
    run_module: RunModule, monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(corosync_info, "collect", lambda **_: info(**seen))
    result = run_module("corosync_conf", nodes=[NODE], _ansible_check_mode=True)
    assert result["failed"] and message in result["msg"]


def test_a_live_node_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    two = corosync_conf.parse(TEXT)
    corosync_edit.add_node(two, "pve2", 2, ["10.77.0.2"])
    copy = {"sha256": "s", "config_version": 2, "text": two.text()}
    both = [{"id": 1, "name": "pve1"}, {"id": 2, "name": "pve2"}]
    monkeypatch.setattr(
        corosync_info,
        "collect",
        lambda **_: info(cluster=copy, host=copy, members=both, live_member_ids=[1, 2]),
    )
    with pytest.raises(PveguardError, match="pve2 is in the live membership"):
        corosync_change.plan(Wanted(nodes=[{"name": "pve2"}], absent=True))


def test_corosync_info_waits_and_says_what_is_missing(
    run_module: RunModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[float] = []

    def wait(wanted: Any, deadline_s: float, statistics: bool) -> Any:
        deadlines.append(deadline_s)
        assert wanted == {"config_version": 2, "quorate": False} and statistics is True
        return info(), ["corosync runs config_version 1, wanted 2"]

    monkeypatch.setattr(corosync_info, "wait", wait)
    options = {"wait_for": {"config_version": 2, "quorate": False}, "statistics": True, "deadline_seconds": 7}
    result = run_module("corosync_info", **options)
    assert result["failed"] and "within 7 s: corosync runs config_version 1, wanted 2" in result["msg"]
    assert result["corosync"]["quorate"] is True
    # A dry run has changed nothing that could arrive: one look, and no failure.
    result = run_module("corosync_info", **options, _ansible_check_mode=True)
    assert (result["arrived"], result["changed"]) == (False, False)
    assert result["missing"] == ["corosync runs config_version 1, wanted 2"]
    assert deadlines == [7, 0]


def test_corosync_info_in_the_form_of_the_role(run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corosync_info, "collect", lambda **_: info())
    result = run_module("corosync_info")
    assert result["arrived"] is None and result["missing"] == []
    assert result["desired"] == {
        "cluster": {"corosync_cluster_name": "lab", "corosync_token": 3000},
        "hosts": {"pve1": {"corosync_node_id": 1, "corosync_links": ["10.77.0.1"]}},
        "not_expressed": [],
    }
    monkeypatch.setattr(corosync_info, "collect", lambda **_: info(cluster=None, host=None))
    assert run_module("corosync_info")["desired"] is None


def cluster(listed: int, *live: int, **more: Any) -> dict[str, Any]:
    """What a member sees of a cluster of ``listed`` nodes."""
    nodes = [{"name": f"pve{n}", "node_id": n, "links": [f"10.77.0.{n}"]} for n in range(1, listed + 1)]
    text = corosync_edit.render_new("lab", nodes, config_version=listed)
    sha256 = corosync_change.hashlib.sha256(text.encode()).hexdigest()
    copy = {"sha256": sha256, "config_version": listed, "text": text}
    return info(
        cluster=copy,
        host=copy,
        members=[{"id": node["node_id"], "name": node["name"]} for node in nodes],
        live_member_ids=list(live),
        running_config_version=listed,
        member_config_versions={str(number): listed for number in live},
        quorate=len(live) * 2 > listed,
        **more,
    )


@pytest.mark.parametrize(
    ("seen", "lost"),
    [
        (cluster(1, 1), None),
        (cluster(2, 1, 2), None),
        (
            cluster(3, 1, 2),
            "pve3 is away: with pve9 listed too, the 2 live vote.s. would be no majority of 4",
        ),
        (cluster(4, 1, 2, 3), None),
        (cluster(5, 1, 2, 3), "pve4, pve5 is away.*'pvecm delnode NAME'"),
    ],
)
def test_adding_a_node_must_not_cost_the_quorum(
    monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any], lost: str | None
) -> None:
    monkeypatch.setattr(corosync_info, "collect", lambda **_: seen)
    wanted = Wanted(nodes=[{"name": "pve9", "node_id": 9, "links": ["10.77.0.9"]}])
    if lost is None:
        assert corosync_change.plan(wanted).changed is True
        return
    for change in (corosync_change.plan, corosync_change.apply):
        with pytest.raises(PveguardError, match=lost):
            change(wanted)
    # What adds no vote is not concerned.
    assert corosync_change.plan(Wanted(nodes=[NODE], token_ms=5000)).changed is True


def test_a_lone_founder_that_lists_the_node_already(
    run_module: RunModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = cluster(2, 1)
    assert seen["quorate"] is False
    monkeypatch.setattr(corosync_info, "collect", lambda **_: seen)
    for check_mode in (True, False):
        result = run_module("corosync_conf", cluster_name="lab", nodes=[NODE], _ansible_check_mode=check_mode)
        assert (result["changed"], result["reloaded"]) == (False, False), result
        assert result["text"] == seen["cluster"]["text"] and result["live_member_ids"] == [1]
        # Anything else still needs the quorum.
        result = run_module("corosync_conf", nodes=[NODE], token=5000, _ansible_check_mode=check_mode)
        assert result["failed"] and "no quorum" in result["msg"]
        other = {**NODE, "links": ["10.77.0.9"]}
        result = run_module("corosync_conf", nodes=[other], _ansible_check_mode=check_mode)
        assert result["failed"] and "already has node pve2" in result["msg"]


def test_a_node_that_is_not_listed_is_not_waited_for(
    run_module: RunModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever state the member is in: without quorum, its copies unequal.
    seen = {**cluster(3, 1), "copies_equal": False, "host": None, "running_config_version": 1}
    monkeypatch.setattr(corosync_info, "collect", lambda **_: seen)
    monkeypatch.setattr(corosync_change.time, "sleep", lambda _s: pytest.fail("it waits"))
    wanted = {"name": "pve9", "node_id": 9, "links": ["10.77.0.9"]}
    result = run_module("corosync_conf", state="absent", nodes=[wanted])
    assert result["changed"] is False and "msg" not in result
    assert result["text"] == seen["cluster"]["text"] and result["live_member_ids"] == [1]


@pytest.mark.parametrize("given", [{"node_id": 3}, {"links": ["10.77.0.9"]}])
def test_a_namesake_is_not_removed(
    run_module: RunModule, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(corosync_info, "collect", lambda **_: cluster(3, 1, 3))
    result = run_module("corosync_conf", state="absent", nodes=[{**NODE, **given}])
    assert result["failed"] and "lists pve2 with id 2 and addresses 10.77.0.2, not" in result["msg"]


def test_lowering_the_votes_needs_every_other_node(monkeypatch: pytest.MonkeyPatch) -> None:
    three = corosync_conf.parse(TEXT)
    corosync_edit.add_node(three, "pve2", 2, ["10.77.0.2"])
    corosync_edit.add_node(three, "pve3", 3, ["10.77.0.3"])
    copy = {"sha256": "s", "config_version": 3, "text": three.text()}
    monkeypatch.setattr(corosync_info, "collect", lambda **_: info(cluster=copy, host=copy, quorate=False))
    with pytest.raises(PveguardError, match="pve2 is away too"):
        corosync_change.apply(Wanted(nodes=[{"name": "pve3"}], absent=True))


def test_a_running_version_that_lags_is_reloaded_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sha256 = corosync_change.hashlib.sha256(TEXT.encode()).hexdigest()
    copy = {"sha256": sha256, "config_version": 1, "text": TEXT}
    calls: list[list[str]] = []
    clock = iter(range(1000))

    def collect(**_: Any) -> dict[str, Any]:
        version = 1 if calls else 0
        return info(
            cluster=copy, host=copy, running_config_version=version, member_config_versions={"1": version}
        )

    def run(argv: Sequence[str], **_: Any) -> Any:
        calls.append(list(argv))
        return corosync_change.real_run(["true"])

    monkeypatch.setattr(corosync_info, "collect", collect)
    outcome = corosync_change.apply(
        Wanted(), run=run, sleep=lambda _s: None, clock=lambda: float(next(clock))
    )
    assert calls == [["corosync-cfgtool", "-R"]]
    assert outcome.reloaded and not outcome.changed


def test_what_never_arrives_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = corosync_change.hashlib.sha256(TEXT.encode()).hexdigest()
    copy = {"sha256": sha256, "config_version": 1, "text": TEXT}
    stuck = info(
        cluster=copy,
        host={**copy, "sha256": "x"},
        running_config_version=1,
        member_config_versions={"1": 1, "2": 0},
    )
    monkeypatch.setattr(corosync_info, "collect", lambda **_: stuck)
    clock = iter(range(1000))
    with pytest.raises(PveguardError) as caught:
        corosync_change.apply(
            Wanted(), 20, expected_ids=[1, 2], sleep=lambda _s: None, clock=lambda: float(next(clock))
        )
    for part in (
        "after 20 s",
        "2 has 0",
        "node ids 2 are not in",
        "/etc/corosync/corosync.conf (config_version 1) is",
    ):
        assert part in str(caught.value)


def member_module(
    monkeypatch: pytest.MonkeyPatch, judgement: Judgement, applied: Any = None
) -> list[Request]:
    seen: list[Request] = []

    def judge(request: Request, **_: Any) -> Judgement:
        seen.append(request)
        return judgement

    def apply(*_: Any) -> Any:
        if isinstance(applied, Exception):
            raise applied
        assert applied is not None, "nothing may be done here"
        return dict(applied)

    monkeypatch.setattr(cluster_member, "judge", judge)
    monkeypatch.setattr(cluster_member, "apply", apply)
    return seen


def test_cluster_member(run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = member_module(monkeypatch, Judgement(True, []))
    assert run_module("cluster_member", **MEMBER, node_name="pve2")["changed"] is False
    assert (seen[0].node_name, seen[0].conf, seen[0].authkey) == ("pve2", None, None)

    member_module(monkeypatch, Judgement(False, ["one reason", "another"]))
    for check in (True, False):
        result = run_module("cluster_member", **MEMBER, node_name="pve2", _ansible_check_mode=check)
        assert result["failed"] and result["msg"].endswith("nothing was changed: one reason; another")

    member_module(monkeypatch, Judgement(False, [], TEXT))
    result = run_module("cluster_member", **MEMBER, _ansible_check_mode=True)
    assert result["changed"] is True and result["diff"]["after"] == TEXT

    member_module(monkeypatch, Judgement(False, [], TEXT), {"generation": "g", "warnings": ["careful"]})
    result = run_module("cluster_member", **MEMBER, authkey="c2VjcmV0", conf=TEXT)
    assert (result["changed"], result["generation"], "warnings" in result) == (True, "g", True)
    assert "c2VjcmV0" not in str(result)

    member_module(
        monkeypatch, Judgement(False, [], TEXT), DetachedError("no quorum. The node is as it was before")
    )
    result = run_module("cluster_member", **MEMBER)
    assert result["failed"] and "as it was before" in result["msg"]


def test_pmxcfs_package(run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def apply(wanted: Any, check_mode: bool) -> Any:
        seen.append((wanted, check_mode))
        return pmxcfs_package.Outcome(
            ["install pve-cluster"], [("/etc/x", "", "y\n")], None, "https://x/", ["careful"]
        )

    monkeypatch.setattr(pmxcfs_package, "apply", apply)
    result = run_module("pmxcfs_package", repository="no-subscription", _ansible_check_mode=True)
    assert result["changed"] is True and result["changes"] == ["install pve-cluster"]
    assert result["diff"][0]["after"] == "y\n"
    assert seen == [(pmxcfs_package.Wanted(repository="no-subscription"), True)]
