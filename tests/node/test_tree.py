# SPDX-License-Identifier: Apache-2.0
"""One reader of the database, one hash, one list of noise, one guest rule: all parts give the same answer."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.cluster import cluster_member, corosync_recover, node_info
from ansible.module_utils.pveguard.cluster.plan import cluster_plan
from ansible.module_utils.pveguard.pmxcfs import node_traces, pmxcfs, tree
from ansible.module_utils.pveguard.state import ram_state

from tests.loading import load_file
from tests.node.test_rows import Database
from tests.node_program import cluster_member as member_program
from tests.node_program import pve_state

ROOT = Path(__file__).resolve().parents[2]
MEMBER = member_program()
STATE = pve_state()
#: The tree of `usual` in the release before 30 November 2026.
USUAL = "094c5db07398fe0c791181ec3cf84d6036583214a7a03ef9135978523de36452"
PATTERN = "^plugin/beat$"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "node/var/lib/pve-cluster").mkdir(parents=True)
    (tmp_path / "node/etc/pve").mkdir(parents=True)
    return tmp_path / "node"


def usual(root: Path) -> Database:
    database = Database(root / "var/lib/pve-cluster/config.db")
    own = database.folder("pve1", database.folder("nodes"))
    guests = database.folder("qemu-server", own)
    database.folder("lxc", own)
    database.add("100.conf", b"name: a\nmemory: 512\n", guests)
    database.add("lrm_status", b"{}", own)
    database.add(b"caf\xe9.cfg", b"1")
    database.add("text", "\N{SNOWMAN}")
    database.add("x", b"", database.folder("lock", database.folder("priv")))
    database.add("y.cfg.tmp.17", b"")
    ha = database.folder("ha")
    database.add("manager_status", b"{}", ha)
    database.add("resources.cfg", b"", ha)
    return database


def hashes(root: Path, noise: list[str] | None = None) -> list[str]:
    """Of node_info, cluster-member, the replica and the generations of pve-state."""
    path = root / "var/lib/pve-cluster/config.db"
    facts = node_info.collect(root=root, noise=noise)["pmxcfs"]
    assert facts["error"] is None
    change = MEMBER.Change(MEMBER.Node(root), {"deadline_s": 9, "noise": noise})
    config = STATE.Config({} if noise is None else {"noise": noise})
    copy = STATE.in_memory(str(path))
    try:
        own = STATE.tree_sha256(copy, config.noise)
    finally:
        copy.close()
    return [facts["tree_sha256"], MEMBER.sha256_of(MEMBER.read_tree(path)[1], change.noise), own]


@pytest.fixture(autouse=True)
def no_units(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(MEMBER, "active", lambda *units: dict.fromkeys(units, False))
    yield


def test_the_hash_of_an_ordinary_tree_stays_what_it_was(root: Path) -> None:
    """Nodes of two releases are compared in an upgrade, and generations have their hash in their manifest."""
    usual(root)
    assert hashes(root) == [USUAL] * 3


STRANGE = {
    "a name that is not UTF-8": lambda d, at: d.add(b"\xe9\xff.conf", b"1", at),
    "a guest whose data is text": lambda d, at: d.add("102.conf", "name: caf\xe9\n", at),
    "a guest whose data is text that is not UTF-8": lambda d, at: d.add("102.conf", b"\xff\xfe", at, value="CAST(? AS TEXT)"),
    "128 folders": lambda d, at: deep(d, 128),
    "a folder with the name of a guest's file": lambda d, at: d.folder("103.conf", at),
    "a guest with a leading zero": lambda d, at: d.add("0104.conf", b"", at),
    "a name of 5,000 digits": lambda d, at: d.add("1" * 5000 + ".conf", b"", at),
    "a name with a slash": lambda d, at: d.add("a/b", b"", at),
}


def deep(database: Database, levels: int) -> None:
    at = 0
    for number in range(levels):
        at = database.folder(f"{number}", at)
    database.add("leaf", b"x", at)


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.parametrize("kind", ["qemu-server", "openvz"])
def test_a_node_with_guests_is_told_alike_by_all_and_never_joins(root: Path, what: str, kind: str) -> None:
    database = usual(root)
    # The inodes of pve1 and its qemu-server.
    home = 5 if kind == "qemu-server" else database.folder(kind, 4)
    database.add("101.conf", b"lock: backup\n[snapshot]\nlock: other\n", home)
    STRANGE[what](database, home)
    assert len(set(hashes(root))) == 1
    facts = node_info.collect(root=root)
    copy = STATE.in_memory(str(database.path))
    try:
        rows = STATE.read_rows(copy)
        counted, locked = sorted(STATE.guests_of(rows)), STATE.locked_guests(copy, "pve1")
        shown = sorted(STATE.Tree(copy, STATE.Config().noise).guests())
    finally:
        copy.close()
    held = MEMBER.read_tree(database.path)[1]
    paths = MEMBER.own_guests(held, "pve1")
    expected = [100, 101, 102] if "text" in what else [100, 101]
    assert facts["pmxcfs"]["guests"] == counted == shown == sorted(tree.guest_of(p) or 0 for p in paths) == expected
    assert locked == MEMBER.locked_guests(held, "pve1") and [lock for _, lock in locked] == ["backup"]
    assert node_traces.collect("pve1", root)["guests"] == expected
    other = {"corosync": {"cluster": {"config_version": 1}, "cluster_name": "c", "quorate": True}, "pmxcfs": {}}
    hosts = {"a": {"cluster": "c", "node": other}, "b": {"cluster": "c", "node": facts}}
    assert cluster_plan(hosts, ["a", "b"], None)["b"]["action"] == "refuse"


def test_a_database_that_is_not_understood_never_joins(root: Path) -> None:
    database = usual(root)
    database.db.execute("UPDATE tree SET parent = 9999 WHERE inode = 5")
    facts = node_info.collect(root=root)
    assert facts["pmxcfs"]["guests"] is None and "no way to the root" in facts["pmxcfs"]["error"]
    other = {"corosync": {"cluster": {"config_version": 1}, "cluster_name": "c", "quorate": True}, "pmxcfs": {}}
    hosts = {"a": {"cluster": "c", "node": other}, "b": {"cluster": "c", "node": facts}}
    assert cluster_plan(hosts, ["a", "b"], None)["b"]["action"] == "refuse"


def test_a_node_leaves_with_no_guest_of_any_kind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = usual(root)
    database.add("300.conf", b"", database.folder("openvz", 4))
    database.db.execute("DELETE FROM tree WHERE name = '100.conf'")
    request = cluster_member.Request("left", "lab", "pve1", 1, [])
    monkeypatch.setattr(cluster_member.corosync_info, "collect", lambda **_: INFO)
    assert "it has guests 300: migrate or remove them first" in cluster_member.judge(request, root=root).refusals


INFO = {
    "host": None, "cluster": None, "cluster_name": "lab", "example_conf": False, "authkey_sha256": "x", "qdevice": False,
}  # fmt: skip


# --- noise ----------------------------------------------------------------------------------------------------


def beat(database: Database, data: bytes) -> None:
    database.add("beat", data, database.folder("plugin"))


def test_a_pattern_of_ram_state_noise_reaches_every_comparison(tmp_path: Path) -> None:
    found: dict[str, set[str]] = {"default": set(), "given": set()}
    for name in ("one", "two"):
        root = tmp_path / name
        (root / "var/lib/pve-cluster").mkdir(parents=True)
        beat(usual(root), name.encode())
        found["default"] |= set(hashes(root))
        found["given"] |= set(hashes(root, [*tree.NOISE, PATTERN]))
    assert (len(found["default"]), len(found["given"])) == (2, 1)


def test_the_node_is_joined_by_the_list_that_it_was_judged_by(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beat(usual(root), b"1")
    monkeypatch.setattr(cluster_member.corosync_info, "collect", lambda **_: INFO)
    noise = [*tree.NOISE, PATTERN]
    request = cluster_member.Request("left", "lab", "pve1", 1, [], noise=noise)
    judged = cluster_member.judge(request, root=root)
    assert judged.tree_sha256 == hashes(root, noise)[0] != hashes(root)[0]
    seen: dict[str, Any] = {}

    def run_detached(unit: str, argv: list[str], *_: Any, **__: Any) -> dict[str, Any]:
        seen.update(json.loads(Path(argv[2]).read_text()))
        return {"changed": True}

    monkeypatch.setattr(cluster_member, "run_detached", run_detached)
    monkeypatch.setattr(cluster_member.node_program, "install", lambda *_: [])
    cluster_member.apply(request, judged, root=root)
    assert seen["noise"] == noise
    MEMBER.Change(MEMBER.Node(root), seen)._require_judged_tree()
    with pytest.raises(MEMBER.Failure, match="changed while"):
        MEMBER.Change(MEMBER.Node(root), {**seen, "noise": None})._require_judged_tree()


def test_traces_of_a_node_leave_out_the_given_noise(root: Path) -> None:
    usual(root)
    assert node_traces.collect("pve1", root)["files"] == ["nodes/pve1/qemu-server/100.conf"]
    assert len(node_traces.collect("pve1", root, [])["files"]) == 2


@pytest.mark.parametrize("pattern", ["storage.cfg", "^storage\\.cfg$", "^($"])
def test_a_bad_pattern_is_refused_alike(root: Path, pattern: str) -> None:
    usual(root)
    with pytest.raises(PveguardError, match=r"ram_state_noise: noise pattern"):
        pmxcfs.collect(root, patterns=[pattern])
    with pytest.raises(STATE.UsageError, match=r"noise pattern"):
        STATE.Config({"noise": [pattern]})


#: Prints what each part says of a database whose path is given, by the cores below the first argument.
ASK = """
import json, sqlite3, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/pveguard"]
from pveguard.cluster import join, node_info
from pveguard.filters import noise
from pveguard.pmxcfs import tree
from pveguard.state import generations, restore_generation, settings
import pmxcfs.tree
from look import table
root = Path(sys.argv[2])
path = str(root / "var/lib/pve-cluster/config.db")
join.active = lambda *units: dict.fromkeys(units, False)
join_noise = join.Change(join.Node(root), {"deadline_s": 1}).noise
database = sqlite3.connect(path)
print(json.dumps({
    "node_info": node_info.collect(root=root)["pmxcfs"]["tree_sha256"],
    "cluster-member": tree.sha256_of(join.read_tree(Path(path))[1], join_noise),
    "pve-state": generations.tree_sha256(database, settings.Config().noise),
    "role": tree.sha256_of(tree.read_tree(path)[1], tree.Noise(noise.noise([]))),
    "look.py": table()[1],
}))
"""


def test_a_pattern_that_is_added_in_one_place_reaches_every_part(tmp_path: Path) -> None:
    cores = tmp_path / "cores"
    shutil.copytree(ROOT / "module_utils/pveguard", cores / "pveguard", ignore=shutil.ignore_patterns("__pycache__"))
    home = cores / "pveguard/pmxcfs/tree.py"

    def ask() -> list[dict[str, str]]:
        found = []
        for name in ("one", "two"):
            root = tmp_path / name
            look = (ROOT / "molecule/default/files/look.py").read_text()
            (cores / "look.py").write_text(look.replace('"/var/lib', f'"{root}/var/lib'))
            # Without what is compiled: one and two are as long, and may be of the same second.
            command = [sys.executable, "-B", "-c", ASK, str(cores), str(root)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout))
        return found

    for name in ("one", "two"):
        (tmp_path / name / "var/lib/pve-cluster").mkdir(parents=True)
        beat(usual(tmp_path / name), name.encode())
    one, two = ask()
    assert all(one[part] != two[part] for part in one)
    text = home.read_text()
    assert text.count("NOISE = (\n    r\"") == 1
    home.write_text(text.replace('NOISE = (\n    r"', f'NOISE = (\n    r"{PATTERN}",\n    r"', 1))
    one, two = ask()
    assert one == two and len(set(one.values())) == 1


def asked(entry: Any) -> Iterator[tuple[str, Any]]:
    """(module, arguments) of every task in a document."""
    if isinstance(entry, list):
        for each in entry:
            yield from asked(each)
    elif isinstance(entry, dict):
        for key, value in entry.items():
            if key in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers"):
                yield from asked(value)
            else:
                yield key, value


#: Modules that compare, or are compared by, the hash of a tree.
COMPARE = {"node_info", "cluster_member", "node_traces", "corosync_recover"}


def test_every_task_that_compares_takes_the_one_variable() -> None:
    found = 0
    for path in [*ROOT.glob("*.yml"), *ROOT.glob("playbooks/**/*.yml"), *ROOT.glob("roles/*/tasks/*.yml")]:
        for module, arguments in asked(yaml.safe_load(path.read_text())):
            where = f"{path.relative_to(ROOT)}: {module}"
            if module in COMPARE:
                found += 1
                assert (arguments or {}).get("noise") == "{{ ram_state_noise | default(omit) }}", where
            elif module == "ram_state" and arguments["state"] == "enabled":
                assert arguments["config"] == "{{ __ram_state_config }}", where
            elif module == "ram_state":
                assert arguments["config"]["noise"] == "{{ ram_state_noise }}", where
    assert found > 20
    settings = yaml.safe_load((ROOT / "roles/ram_state/vars/main.yml").read_text())["__ram_state_config"]
    assert settings["noise"] == "{{ ram_state_noise }}"
    for module in COMPARE:
        options = yaml.safe_load(load_file(f"library/{module}.py").DOCUMENTATION)["options"]
        assert options["noise"]["type"] == "list" and "default" not in options["noise"], module


#: What only looks alike: classes of what is written, for the report; the names of files that a measurement makes itself; the
#: judge of a proof, which reads /etc/pve and no database.
OTHER_SUBJECTS = {
    "module_utils/pveguard/writes/write_classes.py",
    "module_utils/pveguard/writes/write_amplification.py",
    "bench/changes.py",
}
A_LIST = re.compile(r"lrm_status[$|]|manager_status[$|]|\.tmp\\\.")


def test_there_is_no_second_list_of_noise() -> None:
    files = load_file("scripts/product_files.py").product_files()
    texts = {name: (ROOT / name).read_bytes().decode("utf-8", "replace") for name in files if not name.endswith(".md")}
    found = {name for name, text in texts.items() if A_LIST.search(text)}
    assert found - OTHER_SUBJECTS == {"module_utils/pveguard/pmxcfs/tree.py"}


@pytest.mark.parametrize(
    "line",
    [
        "NOISE = re.compile(r'^(__version__|lrm_status|manager_status|.*\\.tmp\\.\\d+|file-.*)$')",
        "  - '^nodes/[^/]+/lrm_status$'",
        "r'(?:nodes/[^/]+/lrm_status|ha/manager_status|priv/lock)'",
    ],
)
def test_a_second_list_would_be_seen(line: str) -> None:
    assert A_LIST.search(line)


def test_the_rules_of_the_tree_are_written_once() -> None:
    def names(path: Path) -> set[str]:
        body = ast.parse(path.read_text()).body
        return {each.name for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name[0] != "_"}

    cores = ROOT / "module_utils/pveguard"
    own = names(cores / "pmxcfs/tree.py")
    again = {
        f"{path.relative_to(cores)}: {name}"
        for path in cores.rglob("*.py")
        for name in names(path) & own
        if path.name != "tree.py"
    }
    # The first two say in their own errors why it cannot be read, the others ask for the number alone.
    assert again == {
        *("pmxcfs/pmxcfs.py: read_tree", "cluster/join_node.py: read_tree"),
        *("writes/pmxcfs_writes.py: root_version", "cluster/recovery_steps.py: root_version"),
    }


def test_the_modules_hand_the_list_on(run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = [*tree.NOISE, PATTERN]
    seen: list[object] = []

    def collect(*_: Any, **more: Any) -> dict[str, Any]:
        seen.append(more.get("noise", more.get("patterns")))
        return {"files": [], "mode": "down"}

    def judge(request: Any, **_: Any) -> Any:
        seen.append(request.noise)
        return cluster_member.Judgement(True, [])

    def carry_out(request: Any, *_: Any) -> dict[str, Any]:
        seen.append(request.noise)
        return {"changed": False, "before": "", "after": ""}

    for core in (node_info, pmxcfs, node_traces):
        monkeypatch.setattr(core, "collect", collect)
    monkeypatch.setattr(cluster_member, "judge", judge)
    monkeypatch.setattr(corosync_recover, "carry_out", carry_out)
    monkeypatch.setattr(ram_state, "disable", lambda *_, **__: {"changed": True, "files": [], "switched": True})
    assert "node" in run_module("node_info", noise=noise)
    run_module("node_traces", name="pve1", noise=noise)
    run_module("cluster_member", state="left", cluster_name="c", noise=noise)
    run_module("corosync_recover", step="save", noise=noise)
    assert "pmxcfs" in run_module("ram_state", state="disabled", config={"noise": noise})
    assert seen == [noise] * 5
