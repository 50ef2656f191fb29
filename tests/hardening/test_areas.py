# SPDX-License-Identifier: Apache-2.0
"""Each area: what is judged beyond the settings of public roles, and what is not understood."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import sysctl_files
from ansible.module_utils.pveguard.base.findings import PROBLEM, UNKNOWN, WARNING
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.hardening import (
    accounts,
    hardening_info,
    looking,
    peers,
    pveproxy,
    updates,
)

from tests.findings import finding
from tests.hardening.node import JUDGES, MOUNTS, Node, clean


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return clean(tmp_path)


# What could not be read


def unread(node: Node, area: str) -> str:
    (each,) = [each for each in node.found() if each.id == f"hardening-{area}-unread"]
    assert each.severity == UNKNOWN and each.helps
    return each.text


@pytest.mark.parametrize("area", list(hardening_info.AREAS))
def test_an_area_of_which_nothing_is_known_is_unknown(area: str) -> None:
    judge = JUDGES[list(hardening_info.AREAS).index(area)]
    for said in (
        {area: {"known": False, "error": "planted"}},
        {},
        {area: None},
        {area: {}},
        {"error": "planted"},
        [],
        "planted",
    ):
        (each,) = judge.of_node({"hardening": said}, {})
        assert (each.id, each.severity) == (f"hardening-{area}-unread", UNKNOWN), said
    assert judge.of_node({}, {}) == [], "nobody asked"


def test_ids_of_what_could_not_be_read() -> None:
    facts = {"hardening": {"error": "planted"}}
    found = [each for judge in JUDGES for each in judge.of_node(facts, {})]
    finding(found, "hardening-sysctl-unread")
    finding(found, "hardening-accounts-unread")
    finding(found, "hardening-pveproxy-unread")
    finding(found, "hardening-auditd-unread")
    finding(found, "hardening-updates-unread")
    assert "planted" in finding(found, "hardening-others-unread").text


@pytest.mark.parametrize(
    ("path", "area"),
    [
        ("/etc/sysctl.d/50-x.conf", "sysctl"),
        ("/etc/modprobe.d/x.conf", "sysctl"),
        ("/etc/pve/user.cfg", "accounts"),
        ("/etc/pve/priv/tfa.cfg", "accounts"),
        ("/etc/pve/domains.cfg", "accounts"),
        ("/etc/default/pveproxy", "pveproxy"),
        ("/etc/pve/.members", "pveproxy"),
        ("/etc/audit/auditd.conf", "auditd"),
        ("/etc/audit/rules.d/x.rules", "auditd"),
        ("/etc/apt/sources.list", "updates"),
        ("/etc/apt/sources.list.d/x.sources", "updates"),
        ("/etc/fstab", "others"),
        ("/etc/security/faillock.conf", "others"),
        ("/etc/default/pve-ha-manager", "others"),
    ],
)
@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "large"])
def test_a_file_that_cannot_be_read_makes_its_area_unknown(
    node: Node, path: str, area: str, kind: str
) -> None:
    place = node.write(path, "")
    place.unlink()
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "loop":
        place.symlink_to(place)
    else:
        with open(place, "wb") as file:
            file.truncate(looking.LIMIT_BYTES + 1)
    assert path in unread(node, area)
    if path == "/etc/pve/priv/tfa.cfg":
        assert "hardening-accounts-root-without-factor" not in node.ids(), "that is not known then"


def test_a_cluster_file_system_that_is_not_mounted_is_unknown(node: Node) -> None:
    for path in (".version", "user.cfg", ".members"):
        node.remove(f"/etc/pve/{path}")
    assert "/etc/pve: not mounted" in unread(node, "accounts")
    assert "/etc/pve: not mounted" in unread(node, "pveproxy")
    # Where Proxmox is not installed there is nothing to know.
    node.remove("/usr/bin/pmxcfs")
    assert not node.ids() & {"hardening-accounts-unread", "hardening-pveproxy-unread"}


@pytest.mark.parametrize(
    ("program", "area"), [("apt-config", "updates"), ("chronyc", "others"), ("systemctl", "others")]
)
@pytest.mark.parametrize("how", ["missing", "fails", "nothing", "raises"])
def test_a_program_that_does_not_answer_makes_its_area_unknown(
    node: Node, program: str, area: str, how: str
) -> None:
    def raises(argv: Any) -> Result:
        raise OSError(12, "no memory")

    def missing(argv: Any) -> Result:
        raise CommandMissing("not installed")

    answers = {
        "missing": missing,
        "fails": lambda argv: Result(124),
        "nothing": lambda argv: Result(0, ""),
        "raises": raises,
    }
    node.answers[program] = answers[how]
    if (program, how) == ("apt-config", "nothing"):
        return
    assert program in unread(node, area)
    assert "hardening-others-time" not in node.ids(), "that is not known then"


def test_a_look_that_stumbles_is_unknown_and_says_nothing_of_what_it_read(tmp_path: Path) -> None:
    @looking.area
    def look(looking: looking.Looking) -> dict[str, Any]:
        raise ValueError("secret-of-the-file")

    assert look(tmp_path, Node(tmp_path).run) == {"known": False, "error": "not understood (ValueError)"}


def test_an_empty_machine_raises_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.answers, node.mounts = {}, []
    facts = node.look()
    assert not facts["sysctl"]["known"] and not facts["others"]["known"]


# Kernel settings and modules


def test_keys_of_sysctl_in_both_notations() -> None:
    text = " - net/ipv4/conf/eno1.30/rp_filter = 1\n-net.ipv4.ip_forward=0\n; no\n# no\nbroken line\nvm.swappiness = 0 \n=\n"
    found = sysctl_files.parse(text.replace(" - ", "-"))
    assert found == {
        "net.ipv4.conf.eno1/30.rp_filter": "1",
        "net.ipv4.ip_forward": "0",
        "vm.swappiness": "0",
        "": "",
    }


@pytest.mark.parametrize(
    ("key", "value", "id", "severity"),
    [
        ("kernel.modules_disabled", "1", "hardening-sysctl-modules-disabled", PROBLEM),
        ("kernel.unprivileged_userns_clone", "0", "hardening-sysctl-user-namespaces-off", WARNING),
        ("user.max_user_namespaces", "0", "hardening-sysctl-user-namespaces-off", PROBLEM),
        ("vm.overcommit_memory", "2", "hardening-sysctl-overcommit", PROBLEM),
        ("vm.swappiness", "0", "hardening-sysctl-swappiness-zero", WARNING),
        ("vm.max_map_count", "65529", "hardening-sysctl-map-count-low", WARNING),
        ("net.bridge.bridge-nf-call-iptables", "0", "hardening-sysctl-bridge-netfilter-off", WARNING),
        ("net.ipv4.conf.vmbr0.rp_filter", "1", "hardening-sysctl-rp-filter-strict", PROBLEM),
        ("net.ipv4.conf.vmbr0.log_martians", "1", "hardening-sysctl-log-martians", WARNING),
        ("net.ipv6.conf.all.forwarding", "0", "hardening-sysctl-forwarding-off", WARNING),
    ],
)
def test_each_setting_in_a_file_and_in_the_kernel(
    node: Node, key: str, value: str, id: str, severity: str
) -> None:
    path = node.write("/etc/sysctl.d/10-x.conf", f"{key} = {value}\n")
    (each,) = [each for each in node.found() if each.id == id]
    assert each.severity == severity and f"{key} = {value} in /etc/sysctl.d/10-x.conf" in each.text
    assert "/etc/sysctl.d/10-x.conf" in each.code
    # Hidden by the administrator's link: then nobody sets it.
    path.unlink()
    path.symlink_to("/dev/null")
    assert id not in node.ids()
    if "bridge" not in key and "forwarding" not in key:
        node.kernel({key.replace(".", "/"): value})
        (each,) = [each for each in node.found() if each.id == id]
        assert f"{key} = {value} in the running kernel" in each.text and "in no file" in each.text


def test_ids_of_kernel_settings(node: Node) -> None:
    node.write(
        "/etc/sysctl.d/10-x.conf",
        "kernel.modules_disabled=1\nuser.max_user_namespaces=0\nvm.overcommit_memory=2\nvm.swappiness=0\nvm.max_map_count=1\n"
        "net.bridge.bridge-nf-call-ip6tables=0\n",
    )
    found = node.found()
    finding(found, "hardening-sysctl-modules-disabled")
    finding(found, "hardening-sysctl-user-namespaces-off")
    finding(found, "hardening-sysctl-overcommit")
    finding(found, "hardening-sysctl-swappiness-zero")
    finding(found, "hardening-sysctl-map-count-low")
    assert finding(found, "hardening-sysctl-bridge-netfilter-off").severity == WARNING
    node.kernel({"net/bridge/bridge-nf-call-ip6tables": "0"})
    assert finding(node.found(), "hardening-sysctl-bridge-netfilter-off").severity == PROBLEM


def test_forwarding_is_a_problem_where_the_node_routes(node: Node) -> None:
    assert "hardening-sysctl-forwarding-off" not in node.ids()
    node.append("/etc/network/interfaces", "\tpost-up iptables -t nat -A POSTROUTING -j MASQUERADE\n")
    each = finding(node.found(), "hardening-sysctl-forwarding-off")
    assert (
        each.severity == PROBLEM and "/etc/network/interfaces" in each.means and "running kernel" in each.text
    )
    node.kernel({"net/ipv4/ip_forward": "1"})
    assert "hardening-sysctl-forwarding-off" not in node.ids()


def test_the_strict_filter_follows_the_higher_of_both(node: Node) -> None:
    node.kernel({"net/ipv4/conf/all/rp_filter": "1", "net/ipv4/conf/lo/rp_filter": "2"})
    # Every interface has 2, which is higher.
    assert "hardening-sysctl-rp-filter-strict" not in node.ids()
    node.kernel({"net/ipv4/conf/eno1/rp_filter": "0"})
    assert "hardening-sysctl-rp-filter-strict" in node.ids()


@pytest.mark.parametrize(
    ("path", "text", "uses"),
    [
        ("/etc/corosync/corosync.conf", "    ring0_addr: fd00::11\n", True),
        ("/etc/corosync/corosync.conf", "    ring0_addr: 10.0.0.11\n", False),
        ("/etc/network/interfaces", "iface vmbr0 inet6 static\n", True),
        ("/etc/network/interfaces", "iface vmbr0\n\taddress fd00::11/64\n", True),
        ("/etc/network/interfaces", "iface lo inet6 static\n\taddress 10.0.0.11/24\n# iface vmbr0 inet6 auto\n", False),
    ],
)
def test_ipv6_that_is_off_is_a_problem_where_it_is_used(node: Node, path: str, text: str, uses: bool) -> None:
    node.write(path, text)
    assert "hardening-sysctl-ipv6-off" not in node.ids()
    node.kernel({"net/ipv6/conf/all/disable_ipv6": "1"})
    assert ("hardening-sysctl-ipv6-off" in node.ids()) is uses
    if uses:
        node.write("/etc/sysctl.d/10-x.conf", "net.ipv6.conf.default.disable_ipv6 = 1\n")
        each = finding(node.found(), "hardening-sysctl-ipv6-off")
        assert each.severity == PROBLEM and "sysctl -w net.ipv6.conf.all.disable_ipv6=0" in each.code
        assert "net.ipv6.conf.default.disable_ipv6 = 1 in /etc/sysctl.d/10-x.conf" in each.text


def test_lockdown(node: Node) -> None:
    node.write("/proc/cmdline", "quiet lockdown=integrity\n")
    assert finding(node.found(), "hardening-sysctl-lockdown").severity == WARNING
    node.write("/etc/default/grub", '# lockdown=none\nGRUB_CMDLINE_LINUX="lockdown=confidentiality"\n')
    each = finding(node.found(), "hardening-sysctl-lockdown")
    assert each.severity == PROBLEM and "/etc/default/grub" in each.text and "update-grub" in each.code


def test_modules(node: Node) -> None:
    node.write(
        "/etc/modprobe.d/x.conf",
        "install br_netfilter \\\n  /usr/bin/false\nblacklist fuse\ninstall cramfs /bin/true\n# blacklist udf\n",
    )
    each = finding(node.found(), "hardening-sysctl-module-off")
    assert (
        each.severity == PROBLEM
        and "br_netfilter" in each.text
        and "pmxcfs" in each.means
        and "cramfs" not in each.text
    )
    node.write("/etc/modprobe.d/x.conf", "install 8021q /usr/local/sbin/decide $CMDLINE_OPTS\n")
    each = finding(node.found(), "hardening-sysctl-module-install")
    assert each.severity == UNKNOWN and "/etc/modprobe.d/x.conf" in each.text


# Accounts

SECRET = "SECRET-4f9a"
TFA = {
    "users": {
        "root@pam": {
            "totp": [{"info": {"id": "a", "enable": True}, "entry": f"otpauth://totp/x?secret={SECRET}"}]
        },
        "amy@pve": {
            "webauthn": [{"info": {"enable": True}, "entry": {"cred_id": SECRET}}],
            "recovery": {"secret": SECRET, "entries": [SECRET, None, SECRET], "created": 1},
            "totp-locked": True,
        },
        "bob@pve": {"totp": [{"info": {"enable": False}, "entry": SECRET}], "tfa-locked-until": 99999999999},
    },
    "webauthn": {"rp": SECRET},
}
USERS = (
    f"user:root@pam:1:0:A:B:{SECRET}@mail:{SECRET}:x:\nuser:amy@pve:1:0:::::x:\nuser:bob@pve:1:0::::{SECRET}:{SECRET}:\nuser:off@ldap:0:0::::::\n"
    f"token:root@pam!ansible:0:0:{SECRET}:\ntoken:amy@pve!ci:0:1::\ntoken:bob@pve!old:1000:0::\ntoken:off@ldap!x:0:0::\n"
    "group:admins:amy@pve,bob@pve::\nrole:Own:VM.Audit:\npool:p:::\n"
    "acl:1:/:@admins:Administrator:\nacl:1:/vms:bob@pve:Administrator:\nacl:1:/:amy@pve!ci:PVEAdmin:\nacl:1:/:bob@pve:PVEAuditor:\n"
)


def test_accounts(node: Node) -> None:
    node.write("/etc/pve/user.cfg", USERS)
    node.write("/etc/pve/priv/tfa.cfg", json.dumps(TFA))
    node.append(
        "/etc/pve/domains.cfg",
        f"\nldap: corp\n\tbind_dn {SECRET}\n\tserver1 {SECRET}\n\tpassword {SECRET}\n\ttfa type=oath\n",
    )
    found = node.found()
    assert "hardening-accounts-root-without-factor" not in node.ids()
    assert "root@pam" in finding(found, "hardening-accounts-no-recovery-keys").text
    locked = finding(found, "hardening-accounts-factor-locked")
    assert "amy@pve, bob@pve" in locked.text and "pveum user tfa unlock bob@pve" in locked.code
    full = finding(found, "hardening-accounts-token-full-privileges")
    assert (
        full.severity == PROBLEM
        and full.text.endswith(": root@pam!ansible")
        and "modify root@pam ansible --privsep 1" in full.code
    )
    assert "root@pam!ansible, amy@pve!ci" in finding(found, "hardening-accounts-token-never-expires").text
    grants = finding(found, "hardening-accounts-administrators")
    assert "admins (amy@pve, bob@pve): Administrator" in grants.text and "amy@pve!ci: PVEAdmin" in grants.text
    assert (
        "pveum acl delete / --roles Administrator --groups admins" in grants.code and "vms" not in grants.text
    )
    assert "pveum realm delete corp" in finding(found, "hardening-accounts-realm-unused").code


def test_no_secret_leaves_the_node(node: Node) -> None:
    # Also of files that are broken, at each of their places.
    texts = [
        ("/etc/pve/user.cfg", USERS),
        ("/etc/pve/priv/tfa.cfg", json.dumps(TFA)),
        ("/etc/subscription", SECRET),
    ]
    proxy = f'ALLOW_FROM="10.0.0.0/24"\nPASSWORD={SECRET}\nX=$(echo {SECRET})\n'
    texts += [("/etc/default/pveproxy", proxy), ("/etc/default/pve-ha-manager", f"`{SECRET}`\n")]
    texts += [
        (
            "/etc/apt/sources.list",
            f"deb https://u:{SECRET}@h.example/{SECRET}/x?{SECRET} bookworm main\ndeb [x={SECRET} {SECRET}\n",
        )
    ]
    texts += [("/etc/fail2ban/jail.local", f"[DEFAULT]\naction = mail[p={SECRET}]\n{SECRET}\n[x\n")]
    for path, text in texts:
        node.write(path, text)
    for cut in range(0, max(len(text) for _, text in texts) + 3, 3):
        for path, text in texts:
            node.write(path, text[:cut] if cut % 2 else text[cut:])
        facts = node.facts()
        found = [each.sentence for judge in JUDGES for each in judge.of_node(facts, {})]
        assert SECRET not in json.dumps([facts["hardening"], found]), cut


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '"x"',
        "null",
        "{",
        '{"users": []}',
        '{"users": {"root@pam": 3}}',
        '{"users": {"root@pam\\n": {"totp": [{}]}}}',
        '{"users": {"root": {"totp": [{}]}}}',
        "\ufeff{}",
        "\x00\xff",
        '{"users": {"root@pam": {"totp": 3}}}',
        "[" * 100000,
        "x:oath:c2VjcmV0\n",
        '{"users": {"root@pam": {"totp": 1e999}}}',
        "1" * 5000,
    ],
)
def test_second_factors_that_are_not_understood_are_unknown(node: Node, text: str) -> None:
    node.write("/etc/pve/priv/tfa.cfg", text)
    found = node.found()
    if not text:
        finding(found, "hardening-accounts-root-without-factor")
        return
    assert finding(found, "hardening-accounts-unread").severity == UNKNOWN
    assert not [each for each in found if each.id == "hardening-accounts-root-without-factor"]


def test_recovery_keys_that_are_not_understood_are_unknown(node: Node) -> None:
    node.write(
        "/etc/pve/priv/tfa.cfg",
        '{"users": {"root@pam": {"totp": [{}], "recovery": {"entries": [1], "others": [2]}}}}',
    )
    assert finding(node.found(), "hardening-accounts-no-recovery-keys").severity == UNKNOWN


@pytest.mark.parametrize(
    "line",
    [
        "user:root:1:0:::",
        "user:a@pve:yes:0:::",
        "user:a@pve:1:never:::",
        "token:a@pve:0:1::",
        "token:a@pve!x:0:maybe::",
        "acl:1:vms:a@pve:R:",
        "acl:7:/:a@pve:Administrator:",
        "group::",
        "group:admins:a@pve,b c:",
        "acl:1:/:a/b@pve:Administrator:",
        "acl:1:/::Administrator:",
        "acl:1:/:a@pve,<b@pve>:PVEAuditor:",
        "what is this",
        "user",
        "\x00\x01",
        "user:a@pve:1:٣:::",
    ],
)
def test_lines_of_user_cfg_that_are_not_understood_are_unknown(node: Node, line: str) -> None:
    node.append("/etc/pve/user.cfg", f"{line}\n")
    each = finding(node.found(), "hardening-accounts-malformed")
    assert each.severity == UNKNOWN and "line 2" in each.text and "user.cfg" in each.text


@pytest.mark.parametrize("path", ["/", "//", "/ "])
def test_everything_has_more_than_one_name(node: Node, path: str) -> None:
    node.append("/etc/pve/user.cfg", f"user:a@pve:1:0::::::\nacl:1:{path}:a@pve:Administrator:\n")
    assert "a@pve: Administrator" in finding(node.found(), "hardening-accounts-administrators").text


def test_a_line_that_is_broken_in_part_still_tells_the_rest(node: Node) -> None:
    node.append("/etc/pve/user.cfg", "user:a@pve:1:0::::::\nacl:1:/:a@pve,a/b@pve:Administrator:\n")
    found = node.found()
    finding(found, "hardening-accounts-malformed")
    assert "a@pve: Administrator" in finding(found, "hardening-accounts-administrators").text


@pytest.mark.parametrize("text", ["ldap: a b\n", "\tserver1 x\n", "pve\n", "\x00\n", "ldap:\n"])
def test_sections_of_domains_cfg_that_are_none_are_unknown(node: Node, text: str) -> None:
    node.write("/etc/pve/domains.cfg", text)
    assert finding(node.found(), "hardening-accounts-malformed").severity == UNKNOWN


def test_without_quorum_what_is_there_is_told(node: Node) -> None:
    """It is read alone, and may be old; that there is no quorum is told by others."""
    said = json.loads((node.root / "etc/pve/.members").read_text())
    said["cluster"]["quorate"] = 0
    node.write("/etc/pve/.members", json.dumps(said))
    before, facts = node.picture(), node.look()
    assert {area: each["error"] for area, each in facts.items() if not each["known"]} == {} and node.picture() == before


def test_lines_of_domains_cfg_that_are_not_understood_are_unknown(node: Node) -> None:
    node.append("/etc/pve/domains.cfg", "password is here\n")
    assert "domains.cfg" in finding(node.found(), "hardening-accounts-malformed").text


def test_a_switched_off_root_needs_no_factor(node: Node) -> None:
    assert finding(node.found(), "hardening-accounts-root-without-factor").severity == WARNING
    node.write("/etc/pve/user.cfg", "user:root@pam:0:0::::::\n")
    assert "hardening-accounts-root-without-factor" not in node.ids()
    assert accounts.parse_users("user:a@pve:1:0\r\n\n# x\n").strange == []


# pveproxy


def proxy(node: Node, text: str) -> set[str]:
    node.write("/etc/default/pveproxy", text)
    return {id for id in node.ids() if "pveproxy" in id}


def test_a_deny_is_offered_only_where_it_keeps_no_member_out(node: Node) -> None:
    proxy(node, 'ALLOW_FROM="10.0.0.0/24"\n')
    each = finding(node.found(), "hardening-pveproxy-allow-without-deny")
    assert each.code == "echo 'DENY_FROM=\"all\"' >> /etc/default/pveproxy; systemctl restart pveproxy spiceproxy"
    proxy(node, 'ALLOW_FROM="10.0.0.11"\n')
    each = finding(node.found(), "hardening-pveproxy-allow-without-deny")
    assert each.code == "editor /etc/default/pveproxy; systemctl restart pveproxy spiceproxy"
    assert "nodes of the cluster are missing in it: pve2 (10.0.0.12), pve3 (10.0.0.13)" in each.text
    node.write("/etc/pve/.members", "")
    assert finding(node.found(), "hardening-pveproxy-allow-without-deny").code.startswith("editor "), "members are not known"


def test_access_rules(node: Node) -> None:
    assert proxy(node, 'ALLOW_FROM="10.0.0.0/24"\n') == {"hardening-pveproxy-allow-without-deny"}
    each = finding(node.found(), "hardening-pveproxy-allow-without-deny")
    assert 'ALLOW_FROM="10.0.0.0/24"' in each.text and 'DENY_FROM="all"' in each.code
    good = 'ALLOW_FROM="10.0.0.11-10.0.0.13,192.0.2.77"\nDENY_FROM="all"\nPOLICY="allow"\n'
    assert proxy(node, good) == set()
    assert proxy(node, good.replace("0.13", "0.12")) == {"hardening-pveproxy-peer-refused"}
    each = finding(node.found(), "hardening-pveproxy-peer-refused")
    assert each.severity == PROBLEM and "pve3 (10.0.0.13)" in each.text
    # What is in both lists goes by the policy.
    assert proxy(node, good.replace('"allow"', "deny")) == {"hardening-pveproxy-peer-refused"}
    assert proxy(node, "export POLICY='deny'; \nALLOW_FROM=10.0.0.0/24 # all of us\n") == set()
    assert proxy(node, "LISTEN_IP=10.0.0.11\n") == {"hardening-pveproxy-listen-ip"}
    finding(node.found(), "hardening-pveproxy-listen-ip")


def test_tls(node: Node) -> None:
    assert proxy(node, 'CIPHERS="ECDHE-RSA-AES256-GCM-SHA384:!aNULL:!MD5"\nDISABLE_TLS_1_2=1\n') == set()
    assert proxy(node, "CIPHERS=HIGH:RC4-SHA\n") == {"hardening-pveproxy-tls"}
    assert finding(node.found(), "hardening-pveproxy-tls").severity == WARNING
    proxy(node, "DISABLE_TLS_1_2=1\nDISABLE_TLS_1_3=1\n")
    assert finding(node.found(), "hardening-pveproxy-tls").severity == PROBLEM


TRICKS = [
    'ALLOW_FROM="$(touch {mark})"',
    "ALLOW_FROM=`touch {mark}`",
    "DENY_FROM=${{X:-all}}",
    "DENY_FROM=all; touch {mark}",
    "DENY_FROM=all touch {mark}",
    "DENY_FROM=all && POLICY=allow",
    "if true; then",
    "source /etc/other",
    ". /etc/other",
    "DENY_FROM+=all",
    "DENY_FROM=al\\",
    'DENY_FROM="all',
    "DENY_FROM='a''ll'",
    'DENY_FROM=a"ll"',
    "declare DENY_FROM=all",
    "unset DENY_FROM",
    "DENY_FROM=(all)",
    "DENY_FROM=<(touch {mark})",
    'eval "touch {mark}"',
    "DENY_FROM =all",
    "DENY_FROM=$'all'",
    "DENY_FROM=~",
    "DENY_FROM=all|touch {mark}",
    "DENY_FROM=all&",
    "DENY_FROM=all#no",
    "readonly POLICY",
    "DENY_FROM=all\x0btouch {mark}",
    "D\u00c9NY=all",
    "f() {{ DENY_FROM=; }}; f",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_of_bash_are_not_run_and_unknown(node: Node, tmp_path: Path, trick: str) -> None:
    mark = tmp_path / "mark"
    good = 'ALLOW_FROM="10.0.0.0/24"\nDENY_FROM="all"\n'
    for text in (good + trick.format(mark=mark), trick.format(mark=mark) + "\n" + good):
        node.write("/etc/default/pveproxy", f"{text}\n")
        each = finding(node.found(), "hardening-pveproxy-not-understood")
        assert each.severity == UNKNOWN and "not known" in each.means
    assert not mark.exists()


def test_nothing_else_is_said_of_rules_that_are_not_understood(node: Node) -> None:
    assert proxy(node, "ALLOW_FROM=10.0.0.11\nLISTEN_IP=10.0.0.11\nif true; then DENY_FROM=all; fi\n") == {
        "hardening-pveproxy-not-understood"
    }


@pytest.mark.parametrize(
    "text",
    [
        "ALLOW_FROM=admin.example",
        "DENY_FROM=10.0.0.9-10.0.0.x",
        "POLICY=maybe",
        "ALLOW_FROM=10.0.0.1-fe80::1",
    ],
)
def test_addresses_that_are_not_understood_are_unknown(node: Node, text: str) -> None:
    assert proxy(node, f"{text}\n") == {"hardening-pveproxy-not-understood"}


def test_addresses_of_members_are_all_or_an_error() -> None:
    told = {"nodelist": {"pve1": {"ip": "192.0.2.1"}, "pve2": {"ip": "2001:DB8::2"}}}
    assert peers.addresses(told) == {"pve1": "192.0.2.1", "pve2": "2001:DB8::2"}
    for said in ([], {}, None, {"nodelist": []}, {"nodelist": {"a": {}}}, {"nodelist": {"a": 1}}):
        with pytest.raises(ValueError, match="no list of members"):
            peers.addresses(said)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"nodelist": []}',
        '{"nodelist": {"a": {}}}',
        '{"nodelist": {"a": {"ip": "x"}}}',
        "[" * 99999,
    ],
)
def test_members_that_are_not_understood_are_unknown(node: Node, text: str) -> None:
    node.write("/etc/pve/.members", text)
    assert "/etc/pve/.members" in unread(node, "pveproxy")


def test_networks() -> None:
    assert pveproxy.networks("all") == [(4, 0, 2**32 - 1), (6, 0, 2**128 - 1)]
    assert pveproxy.lets_in({"ALLOW_FROM": "::/0", "POLICY": "deny"}, ["10.0.0.1", "fe80::1"]) == {
        "10.0.0.1": False,
        "fe80::1": True,
    }


# auditd


@pytest.mark.parametrize(
    ("line", "id"),
    [
        ("-w /etc/pve -p wa -k pve", "hardening-auditd-watches-pve"),
        ("-w /etc/pve/ -p wa", "hardening-auditd-watches-pve"),
        ("-a always,exit -F dir=/etc/pve/nodes -F perm=wa", "hardening-auditd-watches-pve"),
        ("-w /etc/pve/local/lrm_status -p w", "hardening-auditd-watches-pve"),
        ("-w /etc/pve/user.cfg -p wa", ""),
        ("-w /etc/pve/priv -p wa", ""),
        ("-w '/etc/pve", ""),
        ("# -w /etc/pve", ""),
        ("-e 1", ""),
        ("-f 2", "hardening-auditd-panics"),
        ("-e 2", "hardening-auditd-immutable"),
    ],
)
def test_audit_rules(node: Node, line: str, id: str) -> None:
    node.write("/etc/audit/rules.d/pve.rules", f"{line}\n")
    assert {each for each in node.ids() if "auditd" in each} == ({id} if id else set())


def test_audit_rules_without_their_parts(node: Node) -> None:
    node.write("/etc/audit/audit.rules", "-w /etc/pve -p wa\n")
    each = finding(node.found(), "hardening-auditd-watches-pve")
    assert "'-w /etc/pve -p wa' in /etc/audit/audit.rules" in each.text and "augenrules" in each.code


# Updates


def source(node: Node, text: str, name: str = "x.list") -> set[str]:
    node.write(f"/etc/apt/sources.list.d/{name}", text)
    return {id for id in node.ids() if "updates" in id}


def test_sources_in_one_line(node: Node) -> None:
    assert (
        source(
            node,
            "deb http://debian.example.net/debian bookworm-backports main # trixie\n#deb http://x trixie main\n",
        )
        == set()
    )
    assert source(node, "deb [arch=amd64] http://debian.example.net/debian trixie main\n") == {
        "hardening-updates-mixed-releases"
    }
    assert (
        "trixie in /etc/apt/sources.list.d/x.list line 1"
        in finding(node.found(), "hardening-updates-mixed-releases").text
    )
    assert source(node, "deb http://ftp.debian.org/debian stable main\n") == {
        "hardening-updates-floating-suite"
    }
    finding(node.found(), "hardening-updates-floating-suite")
    assert source(node, "deb [arch=amd64 trusted=yes] http://h.example/ ./\n") == {
        "hardening-updates-unsigned"
    }
    finding(node.found(), "hardening-updates-unsigned")
    assert source(node, "deb [signed-by=/usr/share/keyrings/gone.gpg] http://h.example bookworm main\n") == {
        "hardening-updates-key-missing"
    }
    assert "/usr/share/keyrings/gone.gpg" in finding(node.found(), "hardening-updates-key-missing").text
    assert source(node, "deb https://enterprise.proxmox.com/debian/pve bookworm pve-enterprise\n") == {
        "hardening-updates-enterprise-without-key"
    }
    assert "sed -i" in finding(node.found(), "hardening-updates-enterprise-without-key").code
    node.write("/etc/subscription", "x")
    assert not [id for id in node.ids() if "updates" in id]
    assert source(node, "deb http://download.proxmox.com/debian/pve bookworm pvetest\n") == {
        "hardening-updates-test-repository"
    }
    finding(node.found(), "hardening-updates-test-repository")


def test_sources_in_deb822(tmp_path: Path) -> None:
    node = clean(tmp_path, 9)
    old = "Types: deb\nURIs: http://debian.example.net/debian\nSuites:\n bookworm\n # a comment inside\nComponents: main\n"
    assert source(node, old.replace(" # a comment inside\n", "# a comment inside\n"), "x.sources") == {
        "hardening-updates-mixed-releases"
    }
    assert source(node, f"Enabled: no\n{old}", "x.sources") == set()
    text = "# x\n\n\nTypes: deb\nURIs: http://h.example\nSuites: ./\nTrusted: yes\n"
    assert source(node, text, "x.sources") == {"hardening-updates-unsigned"}
    assert source(node, text.replace("Trusted", "Allow-Insecure"), "x.sources") == {
        "hardening-updates-unsigned"
    }
    key = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n /abc\n"
    assert source(node, text.replace("Trusted: yes\n", "Signed-By: ABCD1234\n"), "x.sources") == set()
    assert key and source(node, text.replace("Trusted: yes\n", "Signed-By: /gone.gpg\n"), "x.sources") == {
        "hardening-updates-key-missing"
    }
    enterprise = node.root / "etc/apt/sources.list.d/pve-enterprise.sources"
    enterprise.write_text(enterprise.read_text().replace("Enabled: no", "Enabled: yes"))
    node.remove("/etc/apt/sources.list.d/x.sources")
    assert {id for id in node.ids() if "updates" in id} == {"hardening-updates-enterprise-without-key"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.list", "deb http://x\n"),
        ("x.list", "dep http://x bookworm main\n"),
        ("x.list", "deb [trusted=yes http://x bookworm main\n"),
        ("x.sources", "Types: deb\nSuites: x\n"),
        ("x.sources", "nonsense\n"),
        ("x.sources", " leading\n"),
        ("x.list", "\x00\xff\n"),
    ],
)
def test_sources_that_are_not_understood_are_unknown(node: Node, name: str, text: str) -> None:
    assert "hardening-updates-malformed" in source(node, text, name)
    assert finding(node.found(), "hardening-updates-malformed").severity == UNKNOWN


def test_of_an_address_only_the_host_is_told() -> None:
    assert updates.host("https://user:pw@h.example:8443/token/x?y#z") == "h.example"
    assert updates.host("mirror+https://u:p@h.example/x") == "h.example" and updates.host(
        "cdrom:[Debian]/"
    ) in ("cdrom:", "")
    for uri in ("https://u:p@w@h.example/", "://", "https://[::1", "pw", "https://u:p@h .example"):
        assert "p" not in updates.host(uri).replace("h.example", ""), uri


def unattended(*lines: str) -> Result:
    return Result(0, 'APT::Periodic::Unattended-Upgrade "1";\n' + "".join(f"{line}\n" for line in lines))


def test_unattended_upgrades(node: Node) -> None:
    pattern = 'Unattended-Upgrade::Origins-Pattern:: "{}";'
    debian = pattern.format("origin=Debian,codename=${distro_codename},label=Debian-Security")
    node.write("/usr/bin/unattended-upgrade", "")
    node.answers["apt-config"] = lambda argv: unattended(debian)
    assert not [id for id in node.ids() if "updates" in id]
    node.answers["apt-config"] = lambda argv: unattended(
        debian,
        pattern.format("origin=*"),
        pattern.format("origin=Proxmox"),
        'Unattended-Upgrade::Automatic-Reboot "true";',
    )
    found = node.found()
    assert "origin=*, origin=Proxmox" in finding(found, "hardening-updates-unattended-origins").text
    assert finding(found, "hardening-updates-unattended-reboot").severity == PROBLEM


def test_a_pending_reboot(node: Node) -> None:
    node.write("/boot/vmlinuz-6.8.12-10-pve", "")
    assert (
        "6.8.12-10-pve is installed, 6.8.12-9-pve runs"
        in finding(node.found(), "hardening-updates-reboot-pending").text
    )


# Others


def test_fail2ban(node: Node) -> None:
    node.write(
        "/etc/fail2ban/jail.local", "[DEFAULT]\nignoreip = 127.0.0.1/8 10.0.0.11\n[sshd]\nenabled = true\n"
    )
    found = node.found()
    bans = finding(found, "hardening-others-fail2ban-bans-members")
    assert "10.0.0.12, 10.0.0.13" in bans.text and "10.0.0.11" not in bans.text and bans.severity == PROBLEM
    assert "backend = systemd" in finding(found, "hardening-others-fail2ban-backend").code
    node.write(
        "/etc/fail2ban/jail.local",
        "[DEFAULT]\nbackend = systemd\nignoreip = 10.0.0.0/24\n[sshd]\nenabled = true\n",
    )
    assert not [id for id in node.ids() if "fail2ban" in id]
    node.write("/etc/fail2ban/jail.local", "no section\n")
    assert "/etc/fail2ban/jail.local" in unread(node, "others")


def test_watchdogs(node: Node) -> None:
    node.write("/etc/systemd/system.conf.d/x.conf", "[Manager]\nRuntimeWatchdogSec=30\n")
    node.write("/usr/sbin/watchdog", "")
    each = finding(node.found(), "hardening-others-watchdog-conflict")
    assert "RuntimeWatchdogSec in /etc/systemd/system.conf.d/x.conf and the package watchdog" in each.text
    node.write("/etc/default/pve-ha-manager", "WATCHDOG_MODULE=ipmi_watchdog\n")
    assert finding(node.found(), "hardening-others-watchdog-nmi").code == "sysctl -w kernel.nmi_watchdog=0"
    node.write("/etc/default/pve-ha-manager", "WATCHDOG_MODULE=$(cat /x)\n")
    assert finding(node.found(), "hardening-others-watchdog-unknown").severity == UNKNOWN


NOWAYOUT = "hardening-others-watchdog-nowayout"


def test_a_watchdog_with_nowayout(node: Node) -> None:
    assert node.facts("others")["hardening"]["others"]["watchdog"]["nowayout"] is False and NOWAYOUT not in node.ids()
    node.write("/etc/modprobe.d/softdog.conf", "options softdog soft_margin=60 nowayout=1\n")
    each = finding(node.found(), "hardening-others-watchdog-nowayout")
    assert each.severity == WARNING and "not known to be in force" in each.text
    node.write("/sys/class/watchdog/watchdog0/nowayout", "1\n")
    each = finding(node.found(), "hardening-others-watchdog-nowayout")
    assert each.severity == PROBLEM and "/etc/modprobe.d/softdog.conf is in force (set by: usually hand" in each.text
    assert "an orderly stop" in str(each.means) and each.code.endswith("/etc/modprobe.d/softdog.conf; update-initramfs -u")
    command = each.code.partition("; ")[0].replace("/etc/modprobe.d", str(node.root / "etc/modprobe.d"))
    subprocess.run(command, shell=True, check=True)
    assert (node.root / "etc/modprobe.d/softdog.conf").read_text() == "options softdog soft_margin=60\n"
    each = finding(node.found(), "hardening-others-watchdog-nowayout")
    assert each.severity == PROBLEM and "no file that was read sets" in each.text and "kernel's build" in each.text
    assert "options softdog nowayout=0" in each.code


def test_nowayout_of_a_driver_that_tells_it_as_its_parameter(node: Node) -> None:
    node.write("/etc/default/pve-ha-manager", "WATCHDOG_MODULE=ipmi_watchdog\n")
    node.write("/sys/module/ipmi_watchdog/parameters/nowayout", "Y\n")
    node.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX="quiet ipmi-watchdog.nowayout=1"\n')
    each = finding(node.found(), "hardening-others-watchdog-nowayout")
    assert each.severity == PROBLEM and "nowayout of ipmi_watchdog in /etc/default/grub is in force" in each.text
    command, refresh = each.code.split("; ")
    subprocess.run(command.replace("/etc/default", str(node.root / "etc/default")), shell=True, check=True)
    assert (node.root / "etc/default/grub").read_text() == 'GRUB_CMDLINE_LINUX="quiet"\n' and refresh == "update-grub"
    node.write("/sys/module/ipmi_watchdog/parameters/nowayout", "N\n")
    assert NOWAYOUT not in node.ids()


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("options softdog nowayout\n", True),
        ("options softdog \\\n nowayout=Y\n", True),
        ("options softdog nowayout=1\noptions softdog nowayout=0\n", False),
        ("options softdog nowayout=n\n", False),
        ("# options softdog nowayout=1\n", False),
        ("options iTCO_wdt nowayout=1\n", False),
        ("options softdog nowayouts=1\n", False),
    ],
)
def test_files_that_set_nowayout(node: Node, text: str, on: bool) -> None:
    node.write("/etc/modprobe.d/x.conf", text)
    assert (NOWAYOUT in node.ids()) is on


@pytest.mark.parametrize("value", ["", "2\n", None])
def test_nowayout_that_is_not_told_is_not_judged_good(node: Node, value: str | None) -> None:
    place = node.root / "sys/module/softdog/parameters/nowayout"
    if value is None:
        place.unlink()
    else:
        place.write_text(value)
    assert "nowayout" in unread(node, "others") and NOWAYOUT not in node.ids()
    assert node.facts("others")["hardening"]["others"]["watchdog"]["nowayout"] is None


def test_nowayout_without_a_watchdog_is_neither_judged_nor_missed(node: Node) -> None:
    shutil.rmtree(node.root / "sys/module/softdog")
    facts = node.facts("others")["hardening"]["others"]
    assert facts["known"] and facts["watchdog"]["nowayout"] is None and NOWAYOUT not in node.ids()


def test_time(node: Node) -> None:
    node.answers["chronyc"] = lambda argv: Result(0, ",,0,0.0,0.0,0,0,0,0,1,1,0.0,Not synchronised\n")
    assert "has not synchronised" in finding(node.found(), "hardening-others-time").text
    node.answers["chronyc"] = lambda argv: Result(0, "A,b,3,1.0,-1.25,0,0,0,0,1,1,0.0,Normal\n")
    assert "-1.250 s off" in finding(node.found(), "hardening-others-time").text
    node.active = []
    assert finding(node.found(), "hardening-others-time").severity == PROBLEM
    assert "systemctl" in node.answers and node.facts("others")["hardening"]["others"]["known"]
    node.active = ["systemd-timesyncd.service"]
    node.answers["timedatectl"] = lambda argv: Result(0, "no\n")
    assert "systemd-timesyncd has not" in finding(node.found(), "hardening-others-time").text
    node.answers["timedatectl"] = lambda argv: Result(0, "perhaps\n")
    assert "timedatectl" in unread(node, "others")


def test_faillock_that_is_not_in_use(node: Node) -> None:
    node.write("/etc/security/faillock.conf", "even_deny_root\ndeny = 3\n")
    found = node.found()
    assert finding(found, "hardening-others-faillock-root").severity == WARNING
    assert not [each for each in found if each.id == "hardening-others-faillock-few"]


def test_mounts_that_cannot_be_seen_are_unknown(node: Node) -> None:
    node.mounts = []
    assert "mountinfo" in unread(node, "others")
    node.mounts = MOUNTS
    assert not [id for id in node.ids() if id.endswith("-unread")]
