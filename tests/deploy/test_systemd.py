"""Unit files: systemd takes them, they are as closed as they say, and what they name exists."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sites.config import load_site
from tests.deploy.commands import arguments_missing, commands_of, unknown_words

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = sorted(SYSTEMD.glob("*.service"))
GUIDES = [SYSTEMD.parent / name for name in ("coordinator.md", "hospital.md", "study.md", "airgap.md")]
EXPOSURE = {"mmare-coordinator": 20, "mmare-exporter": 15, "mmare-relay": 15, "mmare-worker": 20}  # tenths
INSTALLED = "/opt/mmare/bin"


def tool(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: systemd)")
    return found


def settings(path):
    """Values of a unit file by key; a key that comes again adds one."""
    found = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def environment(path):
    lines = (line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_takes_the_unit(unit, tmp_path):
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(INSTALLED, str(Path(sys.executable).parent)))
    others = [path for path in UNITS if path != unit]
    for other in others:  # that it is ordered after
        shutil.copy(other, tmp_path)
    command = [tool("systemd-analyze"), "verify", "--recursive-errors=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_its_exposure_is_low(unit):
    command = [tool("systemd-analyze"), "security", "--offline=true", "--no-pager"]
    command.append(f"--threshold={EXPOSURE[unit.stem]}")
    done = subprocess.run([*command, str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_its_command_exists_and_its_variables_are_set(unit):
    found = settings(unit)
    (command,) = found["ExecStart"]
    assert command.startswith(f"{INSTALLED}/mmare-")
    for each in [command, *(before.removeprefix("+") for before in found.get("ExecStartPre", []))]:
        (words,) = commands_of(each)
        assert not unknown_words(words)
        assert not arguments_missing(words)
    (file,) = found["EnvironmentFile"]
    assert file.startswith("/etc/mmare/")
    variables = environment(SYSTEMD / Path(file).name)
    assert set(re.findall(r"\$\{(\w+)\}", command)) <= set(variables)


def test_the_worker_has_no_way_out_and_the_relay_no_data():
    worker, relay = settings(SYSTEMD / "mmare-worker.service"), settings(SYSTEMD / "mmare-relay.service")
    assert worker["IPAddressDeny"] == ["any"]
    assert worker["IPAddressAllow"] == ["localhost"]
    assert worker["RestrictAddressFamilies"] == ["AF_UNIX AF_INET"]
    assert worker["DevicePolicy"] == ["closed"]
    assert worker["ReadWritePaths"] == ["/var/lib/mmare /run/mmare"]
    assert worker["User"] != relay["User"]
    assert relay["TemporaryFileSystem"] == ["/var/lib/mmare:ro"]
    assert relay["BindReadOnlyPaths"] == ["/var/lib/mmare/site.toml"]
    assert "SupplementaryGroups" not in relay
    for unit in UNITS:
        found = settings(unit)
        assert found["NoNewPrivileges"] == ["yes"]
        assert found["ProtectSystem"] == ["strict"]
        assert found["UMask"] == ["0077"]
        assert found["User"] != ["root"]
    public = settings(SYSTEMD / "mmare-coordinator.service")["CapabilityBoundingSet"]
    assert public == ["CAP_NET_BIND_SERVICE"]


def test_the_keys_that_the_exporter_may_not_see_are_the_kits():
    from server.membership.kit import Kit

    home = Path(environment(SYSTEMD / "coordinator.env")["MMARE_KIT"])
    kit = Kit(home, "name", "host", 443, 9095)
    hidden = settings(SYSTEMD / "mmare-exporter.service")["InaccessiblePaths"]
    assert hidden == [f"-{path}" for path in (kit.ca_key, kit.key, kit.secret)]


def test_the_example_of_a_site_fits_the_units():
    site = load_site(SYSTEMD / "site.toml")
    assert str(site.worker.socket.parent) in settings(SYSTEMD / "mmare-worker.service")["ReadWritePaths"][0]
    assert site.worker.group == settings(SYSTEMD / "mmare-relay.service")["Group"][0]
    relay_home = f"/var/lib/{settings(SYSTEMD / 'mmare-relay.service')['StateDirectory'][0]}"
    assert site.coordinator.kit == Path(relay_home) / "kit"
    assert site.metrics.address == "127.0.0.1"
    assert site.manifest == Path("/srv/mmare/patients.csv")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_commands_of_the_guides_exist(guide):
    text = guide.read_text()
    for words in commands_of(text):
        assert not unknown_words(words), words
    for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for words in commands_of(block):
            assert not arguments_missing(words), words
    for line in re.findall(r"^install .*", text, re.MULTILINE):
        for name in re.findall(r" ([\w-]+\.(?:conf|env|toml|service))(?= )", line):
            assert (SYSTEMD / name).is_file(), name
    assert len(text.splitlines()) < 100  # a page


@pytest.mark.parametrize("side", ["coordinator", "site"])
def test_users_and_folders_are_made(side, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("making users in a folder needs root")
    (tmp_path / "etc").mkdir()
    for program, kind in (("systemd-sysusers", "sysusers"), ("systemd-tmpfiles", "tmpfiles")):
        create = ["--create"] if kind == "tmpfiles" else []
        command = [tool(program), f"--root={tmp_path}", *create, str(SYSTEMD / f"{kind}-{side}.conf")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    users = dict(line.split(":")[0:3:2] for line in (tmp_path / "etc" / "passwd").read_text().splitlines())
    groups = {
        line.split(":")[0]: line.split(":")[2:]
        for line in (tmp_path / "etc" / "group").read_text().splitlines()
    }

    def mode(path):
        status = (tmp_path / path).stat()
        return f"{status.st_mode & 0o777:04o}", str(status.st_uid), str(status.st_gid)

    if side == "coordinator":
        assert mode("var/lib/mmare-coordinator") == (
            "0700",
            users["mmare-coordinator"],
            groups["mmare-coordinator"][0],
        )
        return
    assert groups["mmare-relay"][1] == "mmare"  # the worker's user lets the relay in
    assert groups["mmare"][1] == ""
    relay = groups["mmare-relay"][0]
    assert mode("var/lib/mmare") == mode("run/mmare") == ("0710", users["mmare"], relay)
    assert mode("var/lib/mmare/cache") == ("0700", users["mmare"], groups["mmare"][0])
    assert mode("var/lib/mmare-relay") == ("0750", users["mmare-relay"], relay)
