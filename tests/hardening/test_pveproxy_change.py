# SPDX-License-Identifier: Apache-2.0
"""Access rules and TLS of the web interface, on the lab's listener, which has bash source the file as Proxmox does.

Members and strangers are addresses of the loopback network, from which a client really connects.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.hardening import (
    hardening_changes,
    hardening_files,
    pveproxy_change,
    pveproxy_proof,
)
from ansible.module_utils.pveguard.hardening.looking import assignments
from ansible.module_utils.pveguard.hardening.pveproxy import DEFAULTS

from tests.hardening.changing import ChangingNode, changing

LISTENER = (
    Path(__file__).resolve().parents[2] / "lab/packages/pve-manager/root/usr/lib/pve-manager-lab/listener"
)
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("openssl", "bash"))) or not Path("/usr/bin/python3").exists(),
    reason="needs openssl, bash, python3",
)
OWN, PEERS, CONTROLLER, STRANGER = "127.0.1.1", ("127.0.1.2", "127.0.1.3"), "127.0.2.1", "127.0.9.9"
NO_QUORUM = json.dumps(
    {
        "nodename": "pve1",
        "version": 5,
        "cluster": {"name": "c", "version": 3, "nodes": 3, "quorate": 0},
        "nodelist": {},
    }
)
ALLOWED = ["127.0.1.0/24", CONTROLLER]
GOOD = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256"
CBC = "ECDHE-RSA-AES128-SHA256"


class ProxyNode(ChangingNode):
    port = 0
    process: subprocess.Popen[str] | None = None

    def unit(self, verb: str, unit: str) -> Result:
        self.restarts.append(unit)
        if unit == "pveproxy.service":
            self.stop()
            self.units[unit] = "active" if self.start() else "failed"
        return Result(0)

    def start(self) -> bool:
        env = {**os.environ, "PVE_LAB_ROOT": str(self.root), "PVE_LAB_PROXY_PORT": str(self.port)}
        self.process = subprocess.Popen([LISTENER, "pveproxy"], env=env, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if " listens on " in line:
                self.port = int(line.split()[-1])
                return True
        return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    @property
    def defaults(self) -> Path:
        return self.root / DEFAULTS.lstrip("/")

    def proxy(
        self, check: bool = False, controller: str = CONTROLLER, **options: Any
    ) -> hardening_files.Result:
        return self.apply(
            "pveproxy", check, controller, **{"allow_from": ALLOWED, "ciphers": GOOD, **options}
        )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    names = ["-keyout", folder / "pve-ssl.key", "-out", folder / "pve-ssl.pem"]
    kind = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=pve1"]
    subprocess.run([*kind, *names], check=True, capture_output=True)
    return folder


@pytest.fixture
def node(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyNode]:
    plain = changing(tmp_path / "node")
    node = ProxyNode(plain.root)
    for name in ("pve-ssl.key", "pve-ssl.pem"):
        node.write(f"/etc/pve/local/{name}", (keys / name).read_text())
    node.write("/usr/bin/pveproxy", "")
    node.write("/run/x", "")
    addresses = dict(zip(("pve1", "pve2", "pve3"), (OWN, *PEERS), strict=True))
    listed = {
        name: {"id": number, "online": 1, "ip": ip} for number, (name, ip) in enumerate(addresses.items(), 1)
    }
    cluster = {"name": "c", "version": 3, "nodes": 3, "quorate": 1}
    node.write(
        "/etc/pve/.members",
        json.dumps({"nodename": "pve1", "version": 5, "cluster": cluster, "nodelist": listed}),
    )
    node.units.update({"pveproxy.service": "active", "spiceproxy.service": "active"})
    assert node.start()
    monkeypatch.setattr(pveproxy_proof, "PORT", node.port)
    yield node
    node.stop()


def gets_in(node: ProxyNode, source: str, ciphers: str = "", highest: ssl.TLSVersion | None = None) -> bool:
    """Whether a client at this address gets an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if ciphers:
        context.set_ciphers(ciphers)
    if highest is not None:
        context.maximum_version = highest
    try:
        with (
            socket.create_connection(("127.0.0.1", node.port), 60, (source, 0)) as plain,
            context.wrap_socket(plain) as client,
        ):
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return client.recv(64).startswith(b"HTTP/1.1 200")
    except (ssl.SSLError, ConnectionError):
        return False


def weak(node: ProxyNode) -> bool:
    return gets_in(node, CONTROLLER, CBC, ssl.TLSVersion.TLSv1_2)


def bash(node: ProxyNode, name: str) -> str:
    """What the shell makes of the file."""
    command = ["bash", "-c", '. "$0"; printf %s "${!1}"', str(node.defaults), name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


THEIRS = b"# of the operator: caf\xe9\nexport MAX_WORKERS='5'\nLISTEN_IP=\"::\"\nALLOW_FROM=10.0.0.1; \n\nCIPHERS=ALL"


def test_check_run_second_run_and_back_with_every_other_line(node: ProxyNode) -> None:
    node.defaults.write_bytes(THEIRS)
    node.defaults.chmod(0o640)
    node.unit("restart", "pveproxy.service")
    assert gets_in(node, STRANGER) and weak(node)
    before = node.others()
    node.restarts.clear()
    planned = node.proxy(check=True)
    assert (
        planned.changed
        and not planned.unproved
        and node.others() == before
        and not node.restarts
        and not node.kept()
    )
    done = node.proxy()
    assert (
        done.todo == planned.todo
        and done.unproved
        and node.restarts == ["pveproxy.service", "spiceproxy.service"]
    )
    assert done.proof == {
        "address": OWN,
        "peers": [{"name": "pve2", "address": PEERS[0]}, {"name": "pve3", "address": PEERS[1]}],
    }
    assert (
        node.defaults.read_bytes().startswith(THEIRS + b"\n")
        and node.defaults.stat().st_mode & 0o777 == 0o640
    )
    assert not gets_in(node, STRANGER) and not weak(node)
    assert all(gets_in(node, each) for each in (OWN, *PEERS, CONTROLLER, "127.0.0.1"))
    said = assignments(node.defaults.read_bytes().decode("latin-1")).values
    assert {name: bash(node, name) for name in said} == said and bash(node, "DENY_FROM") == "all"
    assert hardening_files.confirm("pveproxy", node.root) and not hardening_files.confirm(
        "pveproxy", node.root
    )
    again = node.proxy()
    assert not again.changed and not again.unproved and len(node.restarts) == 2
    assert node.revert().changed and node.others() == before and not node.kept() and not node.revert().changed
    assert gets_in(node, STRANGER) and weak(node)


def test_a_file_that_was_not_there_goes_again(node: ProxyNode) -> None:
    before = node.others()
    node.proxy()
    hardening_files.confirm("pveproxy", node.root)
    node.revert()
    assert node.others() == before and not node.defaults.exists() and not node.kept()


def test_lines_that_are_added_later_stay_and_ours_comes_last_again(node: ProxyNode) -> None:
    node.proxy()
    hardening_files.confirm("pveproxy", node.root)
    node.append(DEFAULTS, 'POLICY="deny"\nMAX_WORKERS=4\n')
    assert node.proxy().changed and bash(node, "POLICY") == "allow" and bash(node, "MAX_WORKERS") == "4"
    assert (
        node.text(DEFAULTS).startswith('POLICY="deny"\nMAX_WORKERS=4\n# pveguard') and not node.proxy().files
    )


@pytest.mark.parametrize("first", [None, "MAX_WORKERS=3", "MAX_WORKERS=3\n"])
def test_a_revert_leaves_lines_that_somebody_has_added_meanwhile(node: ProxyNode, first: str | None) -> None:
    if first is not None:
        node.write(DEFAULTS, first)
    node.proxy()
    hardening_files.confirm("pveproxy", node.root)
    own = node.text(DEFAULTS)
    node.append(DEFAULTS, "LISTEN_IP=127.0.0.1\n")
    node.proxy()
    hardening_files.confirm("pveproxy", node.root)
    wanted = f"{own.partition('# pveguard')[0]}LISTEN_IP=127.0.0.1\n"
    planned = node.revert(check=True)
    assert planned.changed and "# pveguard" in node.text(DEFAULTS) and planned.files[0].after == wanted
    assert node.revert().files == planned.files and node.text(DEFAULTS) == wanted
    # The second run has kept a copy of what it found.
    assert all(each.endswith(".changed") for each in node.kept())
    assert not node.revert().changed and gets_in(node, STRANGER)


def test_tls_alone_leaves_access_as_it_is(node: ProxyNode) -> None:
    node.write(DEFAULTS, 'ALLOW_FROM="127.0.9.9"\nDENY_FROM="192.0.2.1"\n')
    node.proxy(allow_from=[], tls_1_2=False)
    assert gets_in(node, STRANGER) and "FROM" not in node.text(DEFAULTS).partition("# pveguard")[2]
    assert not gets_in(node, CONTROLLER, highest=ssl.TLSVersion.TLSv1_2)
    # And back to what the operator has.
    assert node.proxy(allow_from=[], ciphers="").changed and "pveguard" not in node.text(DEFAULTS)
    assert gets_in(node, CONTROLLER, highest=ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (
            ["127.0.1.1-127.0.1.2", CONTROLLER],
            "would not let in pve3 .127.0.1.3.*node_hardening_pveproxy_allow_from",
        ),
        (["127.0.1.0/24"], "would not let in the controller .127.0.2.1"),
        (["127.0.1.2/31", CONTROLLER], "would not let in this node .127.0.1.1"),
        ([*ALLOWED, "office"], "'office' in node_hardening_pveproxy_allow_from is no address"),
        ([*ALLOWED, '1.1.1.1" $(reboot) "'], "is no value for ALLOW_FROM"),
        ([*ALLOWED, "10.0.0.9-10::1"], "is no address"),
    ],
)
def test_a_list_that_lacks_somebody_is_refused(
    node: ProxyNode, listed: list[str], said: str, check: bool
) -> None:
    before = node.others()
    with pytest.raises(PveguardError, match=f"nothing was changed: .*{said}"):
        node.proxy(check, allow_from=listed)
    assert node.others() == before and not node.restarts and not node.kept()


@pytest.mark.parametrize(
    "text",
    [
        'ALLOW_FROM="$(hostname -I)"\n',
        "ALLOW_FROM=`cat /etc/allow`\n",
        ". /etc/default/more\n",
        "if true; then\nALLOW_FROM=10.0.0.1\nfi\n",
        "ALLOW_FROM=10.0.0.1 \\\n DENY_FROM=all\n",
        'ALLOW_FROM="10.0.0.1\n10.0.0.2"\n',
        "CIPHERS=${X:-ALL}\n",
        "exit 0\n",
        "ALLOW_FROM=10.0.0.1\r\n",
        "POLICY=deny; reboot\n",
        "readonly POLICY=deny\n",
        "trap 'POLICY=deny' EXIT\n",
        "function x { :; }\n",
        "cat <<X\nALLOW_FROM=1\nX\n",
        "ALLOW_FROM+=10.0.0.1\n",
        "PATH=/tmp:$PATH\n",
        "A[1]=2\n",
    ],
)
def test_bash_tricks_are_refused_and_never_run(node: ProxyNode, text: str) -> None:
    node.write(DEFAULTS, f"# first\n{text}")
    before = node.others()
    with pytest.raises(
        PveguardError, match=f"nothing was changed: {DEFAULTS} is more than plain assignments .line 2"
    ):
        node.proxy()
    assert node.others() == before and not node.restarts and not node.kept()


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ('DENY_FROM="127.0.1.66"\n', {}, 'DENY_FROM="127.0.1.66", which would not count any more'),
        ("DISABLE_TLS_1_3=1\n", {"tls_1_2": False}, "DISABLE_TLS_1_3, and with TLS 1.2 off nobody"),
        ("", {"ciphers": "NO-SUCH"}, "OpenSSL knows none of the ciphers 'NO-SUCH'"),
        (
            "",
            {"ciphersuites": 'x" $(reboot)'},
            "is no value for CIPHERSUITES .node_hardening_pveproxy_ciphersuites",
        ),
    ],
)
def test_what_would_not_count_is_refused(
    node: ProxyNode, text: str, options: dict[str, Any], said: str
) -> None:
    node.write(DEFAULTS, text)
    before = node.others()
    with pytest.raises(PveguardError, match=said):
        node.proxy(**options)
    assert node.others() == before and not node.restarts and not node.kept()


@pytest.mark.parametrize(
    "text", ["", "{", NO_QUORUM, '{"nodename": "pve1", "version": 5, "cluster": {"name": "c"}}', None]
)
@pytest.mark.parametrize("listed", [ALLOWED, []])
def test_members_that_are_not_known_are_refused(node: ProxyNode, text: str | None, listed: list[str]) -> None:
    node.write("/etc/pve/.members", text or "")
    if text is None:
        # As a daemon that hangs.
        node.hook = lambda argv: Result(124, "", "cat: no answer within 10 s") if argv[0] == "cat" else None
    before = node.others()
    with pytest.raises(PveguardError, match="nothing was changed: .*members"):
        node.proxy(allow_from=listed)
    assert node.others() == before and not node.restarts and not node.kept()


@pytest.mark.parametrize("check", [False, True])
def test_a_member_that_is_offline_is_refused_by_name(node: ProxyNode, check: bool) -> None:
    node.write("/etc/pve/.members", node.text("/etc/pve/.members").replace('"id": 3, "online": 1', '"id": 3, "online": 0'))
    before = node.others()
    with pytest.raises(PveguardError, match="nothing was changed: pve3 of the cluster is offline"):
        node.proxy(check)
    assert node.others() == before and not node.restarts and not node.kept()


def test_a_service_that_is_dead_or_does_not_answer_is_refused(node: ProxyNode) -> None:
    node.units["pveproxy.service"] = "failed"
    with pytest.raises(PveguardError, match="pveproxy.service is failed: mend that first"):
        node.proxy()
    node.units["pveproxy.service"] = "active"
    node.stop()
    with pytest.raises(PveguardError, match=f"nothing answers on port {node.port}"):
        node.proxy()
    assert not node.defaults.exists() and not node.kept()


def test_a_wrong_list_that_is_there_already_is_mended(node: ProxyNode) -> None:
    node.write(DEFAULTS, 'POLICY="deny"\n')
    node.unit("restart", "pveproxy.service")
    assert not gets_in(node, "127.0.0.1")
    assert node.proxy().unproved and gets_in(node, "127.0.0.1") and gets_in(node, PEERS[0])


def test_a_proof_that_fails_brings_the_file_back_and_restarts(node: ProxyNode) -> None:
    node.write(DEFAULTS, "# mine\n")
    before = node.others()
    node.proxy()
    assert not gets_in(node, STRANGER)
    assert (
        hardening_files.undo("pveproxy", node.run, node.root) and node.others() == before and not node.kept()
    )
    assert gets_in(node, STRANGER) and not hardening_files.undo("pveproxy", node.run, node.root)


def test_a_proof_that_fails_later_goes_back_to_what_was_proved(node: ProxyNode) -> None:
    node.proxy()
    hardening_files.confirm("pveproxy", node.root)
    before = node.others()
    assert node.proxy(allow_from=[*ALLOWED, STRANGER]).unproved and gets_in(node, STRANGER)
    assert hardening_files.undo("pveproxy", node.run, node.root) and node.others() == before
    assert not gets_in(node, STRANGER) and not node.proxy().changed
    node.revert()
    assert not node.defaults.exists() and not node.kept()


def test_a_run_that_died_before_its_proof_leaves_it_to_the_next(node: ProxyNode) -> None:
    before = node.others()
    node.proxy()
    again = node.proxy()
    assert (
        again.unproved
        and again.todo == ["prove the change of pveproxy that nobody has confirmed"]
        and len(node.restarts) == 2
    )
    # What follows has no better place to go back to.
    assert node.proxy(ciphers="").unproved
    hardening_files.undo("pveproxy", node.run, node.root)
    assert node.others() == before and not node.kept()


def test_a_service_that_does_not_start_with_it_is_taken_back(
    node: ProxyNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.write(DEFAULTS, "# mine\n")
    before = node.others()
    real = node.start
    monkeypatch.setattr(node, "start", lambda: "pveguard" not in node.text(DEFAULTS) and real())
    with pytest.raises(PveguardError, match="does not take a connection.*refused.*as it was before this run"):
        node.proxy()
    assert node.others() == before and not node.kept() and gets_in(node, STRANGER)


def test_a_service_that_goes_on_with_the_old_ciphers_is_taken_back(
    node: ProxyNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = node.others()
    monkeypatch.setattr(node, "unit", lambda verb, unit: Result(0))
    with pytest.raises(PveguardError, match="still takes ciphers"):
        node.proxy()
    with pytest.raises(PveguardError, match="still takes TLS 1.2"):
        node.proxy(tls_1_2=False)
    assert node.others() == before and not node.kept()


def test_a_host_without_pveproxy_is_passed_over(node: ProxyNode) -> None:
    node.remove("/usr/bin/pveproxy")
    said = node.proxy()
    assert not said.changed and "no pveproxy" in said.advice[0] and not node.defaults.exists()


def test_assess_tells_what_a_run_would_do(node: ProxyNode) -> None:
    values = {
        "node_hardening_pveproxy": True,
        "node_hardening_pveproxy_allow_from": ALLOWED,
        "node_hardening_pveproxy_ciphers": GOOD,
    }
    wanted = {"node_hardening": {**values, "node_hardening_pveproxy_tls_1_2": True}}
    (said,) = hardening_changes.changes(node.facts(), {}, wanted)
    assert said.startswith("set access rules and TLS of pveproxy")
    node.proxy(tls_1_2=True)
    hardening_files.confirm("pveproxy", node.root)
    assert hardening_changes.changes(node.facts(), {}, wanted) == []
    assert not {each for each in node.ids() if each.startswith("hardening-pveproxy")}


def test_a_block_without_its_end_is_somebody_s_and_stays(node: ProxyNode) -> None:
    text = f"A=1\n{pveproxy_change.BEGIN}\nB=2\n"
    node.write(DEFAULTS, text)
    node.proxy()
    assert node.text(DEFAULTS).startswith(text)
    assert bash(node, "B") == "2" and bash(node, "DENY_FROM") == "all"
    # Also where ours is written again.
    assert node.proxy(ciphers="").files and node.text(DEFAULTS).startswith(text)
