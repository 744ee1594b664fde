"""The Helm chart: rendered by Helm itself, held against the schemas of Kubernetes and what it promises."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.deploy.commands import arguments_missing, commands_of, unknown_words

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
CHART = FOLDER / "mmare"
SITE_TOML = (FOLDER.parent / "systemd" / "site.toml").read_text().partition("\n[metrics]")[0]

pytestmark = pytest.mark.slow  # of .ci/run, which installs Helm's engine and the schemas

VALUES = {
    "coordinator": {"coordinator": {"enabled": True, "host": "join.example.org"}},
    "internal": {
        "coordinator": {
            "enabled": True,
            "host": "10.1.2.3",
            "sideBySide": 3,
            "service": {"type": "ClusterIP", "annotations": {"a/b": "c"}},
            "storage": {"className": "fast"},
        }
    },
    "site": {"site": {"enabled": True, "config": SITE_TOML, "data": {"claim": "patients"}}},
    "paused": {
        "site": {
            "enabled": True,
            "paused": True,
            "config": SITE_TOML,
            "data": {"claim": "patients"},
            "proxy": "http://proxy.hospital.example:3128",
            "gpu": {
                "count": 0,
                "runtimeClassName": "nvidia",
                "nodeSelector": {"gpu": "yes"},
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
            },
        }
    },
}
RELEASES = ("1.27", "1.36")  # of Kubernetes: the oldest that the chart takes, and a recent one


@pytest.fixture(scope="module")
def chart():
    helm = pytest.importorskip(
        "helm_python", reason="Helm's engine is not installed: pip install '.[charts]'"
    )
    with helm.Chart.load(str(CHART)) as found:
        yield found


@pytest.fixture
def rendered(chart):
    def render(name):
        files = chart.render(VALUES[name], name="fed", namespace="mmare")
        return [each for text in files.values() for each in yaml.safe_load_all(text) if each]

    return render


def pods(objects):
    return {
        each["metadata"]["name"]: each["spec"]["template"]
        for each in objects
        if each["kind"] == "StatefulSet"
    }


def containers(pod):
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("release", RELEASES)
def test_kubernetes_takes_every_object(rendered, name, release):
    validate = pytest.importorskip("kubernetes_validate", reason="pip install '.[charts]'").validate
    objects = rendered(name)
    assert len(objects) == (3 if "coordinator" in VALUES[name] else 8)
    for each in objects:
        validate(each, release, strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_pods_are_closed_and_every_volume_is_there(rendered, name):
    for pod in pods(rendered(name)).values():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        claims = {"state"} if name in ("coordinator", "internal") else set()
        volumes = {each["name"] for each in spec["volumes"]} | claims
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {each["name"] for each in container["volumeMounts"]} <= volumes
            assert container["image"].rpartition(":")[2] == version("federated-mmare")


@pytest.mark.parametrize("name", VALUES)
def test_commands_exist(rendered, name):
    called = [each["command"] for pod in pods(rendered(name)).values() for each in containers(pod)]
    ours = [words for words in called if words[0].startswith("mmare-")]
    assert len(ours) == {"coordinator": 3, "internal": 3, "site": 2, "paused": 0}[name]
    for words in ours:
        assert not unknown_words(words)
        assert not arguments_missing(words)
    init = next((pod for pod in pods(rendered(name)).values() if "coordinator" in VALUES[name]), None)
    if init is not None:
        (words,) = commands_of(" ".join(containers(init)[0]["args"]))
        assert not unknown_words(words)
        assert not arguments_missing(words)


def test_the_worker_has_data_and_no_network_the_relay_network_and_no_data(rendered):
    objects = rendered("site")
    found = pods(objects)
    worker, relay = found["fed-site-worker"], found["fed-site-relay"]
    policies = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NetworkPolicy"}
    for name, pod in (("fed-site-worker", worker), ("fed-site-relay", relay)):
        assert policies[name]["podSelector"]["matchLabels"] == pod["metadata"]["labels"]
        assert policies[name]["policyTypes"] == ["Ingress", "Egress"]
        assert policies[name]["ingress"] == []
    assert policies["fed-site-worker"]["egress"] == []
    ports = [port["port"] for rule in policies["fed-site-relay"]["egress"] for port in rule["ports"]]
    assert ports == [443, 53, 53]
    mounts = {
        name: {
            each["name"]: each.get("readOnly", False) for each in pod["spec"]["containers"][0]["volumeMounts"]
        }
        for name, pod in (("worker", worker), ("relay", relay))
    }
    assert mounts["worker"] | {"data": True, "kit": True, "config": True} == mounts["worker"]
    assert "data" not in mounts["relay"]
    assert "state" not in mounts["relay"]
    assert mounts["relay"]["socket"] is True
    assert worker["spec"]["securityContext"]["runAsUser"] == 10001  # as in the image
    assert worker["spec"]["securityContext"]["supplementalGroups"] == [10002]
    assert relay["spec"]["securityContext"]["runAsUser"] == 10002
    (term,) = relay["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == worker["metadata"]["labels"]
    limits = worker["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in str(pods(rendered("paused")))


def test_a_site_s_settings_arrive_as_they_are(rendered):
    (config,) = (each for each in rendered("site") if each["kind"] == "ConfigMap")
    assert tomllib.loads(config["data"]["site.toml"]) == tomllib.loads(SITE_TOML)
    socket = Path(tomllib.loads(SITE_TOML)["worker"]["socket"])
    for pod in pods(rendered("site")).values():
        targets = {each["name"]: each["mountPath"] for each in pod["spec"]["containers"][0]["volumeMounts"]}
        assert targets["socket"] == str(socket.parent)
        assert targets["kit"] == str(Path(tomllib.loads(SITE_TOML)["coordinator"]["kit"]).parent)


def test_only_the_door_is_open_to_all(rendered):
    objects = rendered("coordinator")
    (service,) = (each["spec"] for each in objects if each["kind"] == "Service")
    assert service["ports"] == [{"name": "door", "port": 443, "targetPort": "door"}]
    (policy,) = (each["spec"] for each in objects if each["kind"] == "NetworkPolicy")
    assert policy["egress"] == []
    assert [rule["ports"] for rule in policy["ingress"] if "from" not in rule] == [[{"port": "door"}]]
    (pod,) = pods(objects).values()
    assert service["selector"] == policy["podSelector"]["matchLabels"] == pod["metadata"]["labels"]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        pytest.param(
            {"coordinator": {"enabled": True}}, "coordinator.host: the name under which", id="no host"
        ),
        pytest.param({"coordinator": {"enabled": True, "host": "a;b"}}, "does not match pattern", id="host"),
        pytest.param(
            {"coordinator": {"enabled": True, "federation": '"; x'}}, "/coordinator/federation", id="name"
        ),
        pytest.param({"site": {"enabled": True}}, "site.config: --set-file", id="no config"),
        pytest.param({"site": {"enabled": True, "config": "x"}}, "site.data.claim: the", id="no data"),
        pytest.param({"sites": {}}, "additional properties 'sites' not allowed", id="unknown"),
        pytest.param({"site": {"gpu": {"count": -1}}}, "/site/gpu/count", id="count"),
    ],
)
def test_bad_values_are_refused_by_name(chart, values, why):
    with pytest.raises(Exception, match=why):
        chart.render(values, name="fed", namespace="mmare")


def test_version_and_guide_are_those_of_the_package():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version("federated-mmare")
    found = commands_of((FOLDER / "README.md").read_text())
    assert len(found) >= 6
    for words in found:
        assert not unknown_words(words), words
        assert not arguments_missing(words), words
