# SPDX-License-Identifier: Apache-2.0
"""When a cluster gets a new key, and what one member does for it."""

from __future__ import annotations

import base64
import copy
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.cluster import corosync_authkey
from ansible.module_utils.pveguard.formats import corosync_conf

from .cluster import Cluster
from .cluster_facts import conf, node
from .fakes import FakeRun

OLD, NEW = b"o" * 128, b"n" * 256


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def cluster(live: tuple[int, ...] = (1, 2, 3), **more: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"authkey": sha256(OLD), **more}
    return {f"pve{n}": node(n, live=live, **copy.deepcopy(own)) for n in live}


def refusals(hosts: dict[str, Any], **more: Any) -> str:
    return "\n".join(corosync_authkey.decide(hosts, list(hosts), **more)["refusals"])


def test_a_cluster_of_which_all_is_known_gets_one() -> None:
    hosts = cluster()
    found = corosync_authkey.decide(hosts, list(hosts))
    assert found == {
        "refusals": [], "cluster": "production", "seed": "pve1", "members": ["pve1", "pve2", "pve3"], "live_ids": [1, 2, 3],
        "sha256": sha256(OLD),
    }  # fmt: skip
    assert refusals(hosts, cluster="production", key=text(NEW)) == ""


def test_whoever_would_be_cut_off_prevents_it() -> None:
    assert "pve3 (id 3) is away" in refusals(cluster((1, 2))) or "pve3" in refusals(cluster((1, 2)))
    hosts = cluster()
    hosts["pve2"] = None
    assert "pve2" in refusals(hosts) and "without --limit" in refusals(hosts)
    hosts = cluster()
    hosts["pve2"]["corosync"]["authkey_sha256"] = sha256(NEW)
    assert "not the same on all members" in refusals(hosts) and sha256(NEW)[:12] in refusals(hosts)
    hosts = cluster()
    hosts["pve2"]["packages"]["corosync"] = "3.0.1-2+deb10u1"
    assert "pve2 has 3.0.1-2+deb10u1" in refusals(hosts)
    hosts = cluster()
    hosts["pve3"] = node(3, conf(note="x"), conf(note="x"), authkey=sha256(OLD))
    assert "not the same text" in refusals(hosts)
    hosts = cluster(ha={"watchdog_active": True})
    assert "HA is armed" in refusals(hosts)
    assert "is not quorate" in refusals(cluster(quorate=False))


def test_there_must_be_a_key_in_use_and_a_new_one() -> None:
    assert "is the present key" in refusals(cluster(), key=text(OLD))
    with pytest.raises(PveguardError, match="has 3 bytes") as error:
        refusals(cluster(), key=text(b"abc"))
    assert text(b"abc") not in str(error.value)
    plain = conf().replace("secauth: on", "secauth: off").replace("crypto_hash: sha256", "crypto_hash: none")
    plain = plain.replace("crypto_cipher: aes256", "crypto_cipher: none")
    assert corosync_conf.parse(plain).crypto[1] == "none"
    hosts = {f"pve{n}": node(n, plain, plain, authkey=sha256(OLD)) for n in (1, 2, 3)}
    assert "not authenticated" in refusals(hosts)
    named = conf().replace("totem {", "totem {\n  keyfile: /root/key")
    hosts = {f"pve{n}": node(n, named, named, authkey=sha256(OLD)) for n in (1, 2, 3)}
    assert "names its key in corosync.conf" in refusals(hosts)


def test_of_several_clusters_one_is_named() -> None:
    other = conf(name="second")
    hosts = {**cluster(), **{f"b{n}": {**node(n, other, other, authkey=sha256(OLD))} for n in (1, 2, 3)}}
    assert "authkey_cluster=NAME" in refusals(hosts)
    assert corosync_authkey.decide(hosts, list(hosts), "second")["members"] == ["b1", "b2", "b3"]
    assert "no host of this run is a member of the cluster 'third'" in refusals(hosts, cluster="third")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/corosync").mkdir(parents=True)
    (tmp_path / "etc/corosync/authkey").write_bytes(OLD)
    return tmp_path


def test_a_key_is_placed_and_can_be_put_back(root: Path) -> None:
    key, former = root / "etc/corosync/authkey", root / "run/pveguard/authkey.former"
    assert corosync_authkey.place(text(NEW), sha256(OLD), root, check=True)
    assert key.read_bytes() == OLD and not former.exists()
    assert corosync_authkey.place(text(NEW), sha256(OLD), root)
    assert key.read_bytes() == NEW and key.stat().st_mode & 0o777 == 0o400
    assert former.read_bytes() == OLD and former.stat().st_mode & 0o777 == 0o400
    # Again: the former one is still the former one.
    assert not corosync_authkey.place(text(NEW), sha256(OLD), root)
    assert former.read_bytes() == OLD
    assert corosync_authkey.put_back(root) and key.read_bytes() == OLD and key.stat().st_mode & 0o777 == 0o400
    assert not corosync_authkey.put_back(root)
    assert corosync_authkey.settle(root) and not former.exists() and not corosync_authkey.settle(root)
    assert not corosync_authkey.put_back(root)
    with pytest.raises(PveguardError, match="changed by someone else"):
        corosync_authkey.place(text(NEW), sha256(b"another"), root)
    assert key.read_bytes() == OLD


def test_a_key_is_made_without_a_trace(root: Path) -> None:
    def keygen(argv: list[str]) -> Result:
        Path(argv[-1]).write_bytes(NEW)
        return Result(0, "", "")

    run = FakeRun({"corosync-keygen -l -k": keygen})
    assert corosync_authkey.generate(run, root) == text(NEW)
    assert os.listdir(root / "run/pveguard") == []
    with pytest.raises(PveguardError, match="corosync-keygen failed: no entropy"):
        corosync_authkey.generate(FakeRun({"corosync-keygen": Result(1, "", "no entropy")}), root)


def test_the_reload_is_judged_when_a_loss_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Cluster(tmp_path, monkeypatch)

    def reload(deadline_s: float = 20, issue: bool = True) -> dict[str, Any]:
        return corosync_authkey.reload([1, 2, 3], deadline_s, issue, nodes.run, tmp_path, nodes.sleep, lambda: nodes.now)

    assert reload()["live_member_ids"] == [1, 2, 3]
    # 2.2 times the token of 3000 ms and two seconds.
    assert nodes.now >= 8.6 and nodes.calls.count(["corosync-cfgtool", "-R"]) == 1
    # It is lost after the token and the consensus timeout, and comes back.
    start = nodes.now
    nodes.later = [(start + 6.6, lambda: nodes.live.discard(3)), (start + 12, lambda: nodes.live.add(3))]
    reload()
    assert nodes.now >= start + 12 + 8.6
    nodes.later = [(nodes.now + 6.6, lambda: nodes.live.discard(3))]
    with pytest.raises(PveguardError, match="node ids 3 are not in the membership"):
        reload(issue=False)
    assert nodes.calls.count(["corosync-cfgtool", "-R"]) == 2
    assert reload(deadline_s=0)["live_member_ids"] == [1, 2]
