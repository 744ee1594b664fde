"""Compose files and Containerfiles: closed as they say, and all that they name is there."""

import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.deploy.commands import PROGRAMS, arguments_missing, commands_of, unknown_words

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
FILES = [COMPOSE / "coordinator.yaml", COMPOSE / "site.yaml"]
CONTAINERFILES = sorted(COMPOSE.glob("Containerfile.*"))
CONTAINERFILES = [path for path in CONTAINERFILES if path.suffix != ".dockerignore"]


def services(path):
    return yaml.safe_load(path.read_text())["services"]


EVERY = [pytest.param(path, name, id=name) for path in FILES for name in services(path)]


def mounts(service):
    """Source, target and mode of each volume."""
    found = []
    for text in service["volumes"]:
        source, target, *mode = re.sub(r"\$\{(\w+):\?[^}]*\}", r"$\1", text).split(":")
        found.append((source, target, mode[0] if mode else "rw"))
    return found


@pytest.mark.parametrize(("path", "name"), EVERY)
def test_a_container_is_closed(path, name):
    service = services(path)[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d{4}:[1-9]\d{4}", service["user"])
    assert service["image"].rpartition(":")[2] == version("federated-mmare")


@pytest.mark.parametrize(("path", "name"), EVERY)
def test_a_command_and_its_options_exist(path, name):
    command = services(path)[name]["command"]
    assert command[0] in PROGRAMS
    assert not unknown_words(command)
    assert not arguments_missing(command)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_commands_in_the_head_exist(path):
    found = commands_of(path.read_text().partition("\nname:")[0])
    assert len(found) >= 2
    for command in found:
        assert not unknown_words(command), command
        assert not arguments_missing(command), command


def test_the_worker_has_data_and_no_network_the_relay_network_and_no_data():
    site = services(COMPOSE / "site.yaml")
    worker, relay = site["worker"], site["relay"]
    assert worker["network_mode"] == "none"
    assert "ports" not in worker
    assert "ports" not in relay  # nothing of a hospital waits for others
    assert "network_mode" not in relay
    assert ("$MMARE_DATA", "/srv/mmare", "ro") in mounts(worker)
    sources = {source for source, _, _ in mounts(relay)}
    assert sources == {"./site.toml", "./exchange", "kit", "socket"}
    assert ("socket", "/run/mmare", "rw") in mounts(worker)
    assert ("socket", "/run/mmare", "ro") in mounts(relay)
    assert ("kit", "/var/lib/mmare-relay", "ro") in mounts(worker)
    assert worker["group_add"] == [relay["user"].partition(":")[0]]


def test_only_the_public_door_is_open_to_others():
    coordinator = services(COMPOSE / "coordinator.yaml")
    assert coordinator["coordinator"]["ports"] == ["443:443"]
    assert all(port.startswith("127.0.0.1:") for port in coordinator["exporter"]["ports"])
    assert mounts(coordinator["exporter"]) == [("state", "/var/lib/mmare", "ro")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_volumes_are_declared_and_builds_are_there(path):
    content = yaml.safe_load(path.read_text())
    for service in content["services"].values():
        for source, _, _ in mounts(service):
            assert source.startswith((".", "/", "$")) or source in content["volumes"]
        if "build" in service:
            context = (COMPOSE / service["build"]["context"]).resolve()
            assert context == ROOT
            assert (context / service["build"]["dockerfile"]).is_file()
    built = {service["image"] for service in content["services"].values() if "build" in service}
    assert built == {service["image"] for service in content["services"].values()}


@pytest.mark.parametrize("path", CONTAINERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_and_not_root(path):
    text = re.sub(r"\\\n\s*", "", path.read_text())
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-[a-z]+", base) for base in bases)
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users == ["10001:10001"]
    assert "PIP_CONSTRAINT=/src/deploy/constraints.txt" in text
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", CONTAINERFILES, ids=lambda path: path.name)
def test_a_build_sees_what_it_copies_and_no_more(path):
    text = path.read_text()
    copied = {
        name
        for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
        for name in source.split()
    }
    lines = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    assert lines[1] == "*"  # nothing, but:
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    packages = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text())[1]
    assert set(re.findall(r'"(\w+)"', packages)) <= copied


def test_users_of_image_and_compose_file_are_the_same():
    text = (COMPOSE / "Containerfile.site").read_text()
    numbers = dict(re.findall(r"groupadd --gid (\d+) (\S+)", text))
    site = services(COMPOSE / "site.yaml")
    assert numbers == {"10001": "mmare", "10002": "mmare-relay"}
    assert site["worker"]["user"] == "10001:10001"
    assert site["relay"]["user"] == "10002:10002"


@pytest.mark.parametrize("names", [("coordinator.yaml",), ("site.yaml",), ("site.yaml", "site-gpu.yaml")])
def test_docker_compose_takes_the_files(tmp_path, names):
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed (Debian: docker-compose)")
    folder = tmp_path / "deploy" / "compose"
    folder.mkdir(parents=True)
    command = [program]
    for name in names:  # Debian's is older than the name of a project
        text = re.sub(r"^name: .*\n", "", (COMPOSE / name).read_text(), flags=re.MULTILINE)
        (folder / name).write_text(text)
        command += ["-f", name]
    environment = {"MMARE_DATA": "/srv/mmare", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*command, "config", "--quiet"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if names[0] == "site.yaml":
        done = subprocess.run(
            [*command, "config", "--quiet"],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert "the folder of the data" in done.stderr  # says what is missing
