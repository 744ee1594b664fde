import json
import re
import shutil
import subprocess
import zipfile
from dataclasses import replace

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.membership.kit import make_request
from mmare.errors import InputError, StudyError
from server.membership.kit import Kit, init_kit
from server.membership.records import FormerKey, SiteState, admit, find, listed, revoke, save
from tests.federations import tiny_study
from tests.kits import asked, changed

HOST = "join.example.org"


@pytest.fixture
def kit(tmp_path) -> Kit:
    return init_kit(tmp_path / "coordinator", HOST, 8443, "kidney")


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(tiny_study().to_dict()))
    return path


def openssh(key) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_admitted_site_is_recorded_with_its_key(kit, tmp_path):
    config, request = asked(tmp_path)
    bundle = admit(kit, request)
    (record,) = listed(kit)
    assert bundle == kit.bundles / "ash.zip"
    assert (record.site, record.state, record.node_id) == ("ash", SiteState.ADMITTED, None)
    assert record.public_key == (config.coordinator.kit / "node.pub").read_text().strip()
    assert find(kit, "ash") == record


def test_a_fingerprint_is_that_of_ssh_keygen(kit, tmp_path):
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("ssh-keygen is not installed")
    config, request = asked(tmp_path)
    admit(kit, request)
    command = [program, "-l", "-f", str(config.coordinator.kit / "node.pub")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert said.split()[1] == find(kit, "ash").fingerprint


def test_a_bundle_holds_address_authority_and_study_and_no_secret(kit, tmp_path, study):
    config, request = asked(tmp_path)
    bundle = admit(kit, request, study)
    secrets = [
        path.read_bytes() for path in (kit.secret, kit.key, kit.ca_key, config.coordinator.kit / "node.key")
    ]
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert set(files) == {"coordinator.toml", "ca.crt", "study.toml"}
    assert files["ca.crt"] == kit.ca_certificate.read_bytes()
    assert files["study.toml"] == study.read_bytes()
    for content in (*files.values(), bundle.read_bytes()):
        assert b"PRIVATE KEY" not in content
        assert not [secret for secret in secrets if secret in content]
    address = files["coordinator.toml"].decode()
    assert 'host = "join.example.org"' in address
    assert "port = 8443" in address
    assert str(tmp_path) not in address


def test_the_same_admission_gives_the_same_bytes(kit, tmp_path, study):
    _, request = asked(tmp_path)
    first = admit(kit, request, study).read_bytes()
    record = find(kit, "ash")
    assert admit(kit, request, study, tmp_path / "out" / "again.zip").read_bytes() == first
    assert find(kit, "ash") == record


def test_admitted_again_a_site_gets_another_study_and_keeps_its_node(kit, tmp_path, study):
    _, request = asked(tmp_path)
    admit(kit, request)
    with kit.locked():
        save(kit, replace(find(kit, "ash"), node_id=2**63 + 7))
    bundle = admit(kit, request, study)
    assert find(kit, "ash").node_id == 2**63 + 7
    assert "study.toml" in zipfile.ZipFile(bundle).namelist()


# Keys


@pytest.mark.parametrize(
    ("key", "why"),
    [
        pytest.param(lambda: openssh(rsa.generate_private_key(65537, 2048)), "of type 'ssh-rsa'", id="RSA"),
        pytest.param(lambda: openssh(ed25519.Ed25519PrivateKey.generate()), "'ssh-ed25519'", id="Ed25519"),
        pytest.param(lambda: "ecdsa-sha2-nistp384 AAAA", "public_key is damaged", id="cut short"),
        pytest.param(lambda: "ecdsa-sha2-nistp384", "public_key is damaged", id="type alone"),
        pytest.param(
            lambda: openssh(ec.generate_private_key(ec.SECP384R1())).replace("nistp384", "nistp256", 1),
            "public_key is damaged",
            id="two curves",
        ),
        pytest.param(lambda: "hello", "of type 'hello'", id="a word"),
        pytest.param(lambda: "", "of type ''", id="nothing"),
        pytest.param(lambda: "ssh-dss " + "A" * 900, "of type 'ssh-dss'", id="DSA"),
    ],
)
def test_a_key_that_flower_does_not_take_is_a_sentence(kit, tmp_path, key, why):
    _, request = asked(tmp_path)
    before = contents(kit.folder)
    with pytest.raises(InputError, match=why):
        admit(kit, changed(request, public_key=key()))
    assert contents(kit.folder) == before


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_other_curves_of_flower_are_taken_and_comments_dropped(kit, tmp_path, curve):
    _, request = asked(tmp_path)
    key = openssh(ec.generate_private_key(curve))
    admit(kit, changed(request, public_key=f"{key} dr.mabuse@clinic\n"))
    assert find(kit, "ash").public_key == key


def test_one_key_is_of_one_site(kit, tmp_path):
    _, request = asked(tmp_path)
    admit(kit, request)
    before = contents(kit.folder)
    with pytest.raises(InputError, match="the key of 'birch' belongs to 'ash' already"):
        admit(kit, changed(request, site="birch"))
    assert contents(kit.folder) == before


def test_another_key_of_an_admitted_site_needs_a_word(kit, tmp_path):
    config, request = asked(tmp_path)
    admit(kit, request)
    first = find(kit, "ash")
    with kit.locked():
        save(kit, replace(first, node_id=7))
    make_request(config, new_key=True)
    with pytest.raises(InputError, match=rf"with another key, {re.escape(first.fingerprint)}.*--replace"):
        admit(kit, request)
    admit(kit, request, replace_key=True)
    second = find(kit, "ash")
    assert second.fingerprint != first.fingerprint
    assert second.node_id is None
    assert second.former == (FormerKey(first.fingerprint, 7),)


def test_a_replaced_key_never_comes_back(kit, tmp_path):
    config, request = asked(tmp_path)
    old = request.read_text()
    admit(kit, request)
    admit(kit, make_request(config, new_key=True), replace_key=True)
    request.write_text(old)
    with pytest.raises(InputError, match=r"revoked or replaced for good; .*--new-key"):
        admit(kit, request, replace_key=True)
    with pytest.raises(InputError, match="belongs to 'ash' already"):
        admit(kit, changed(request, site="birch"))


def test_a_revoked_site_comes_back_with_a_new_key_only(kit, tmp_path):
    config, request = asked(tmp_path)
    bundle = admit(kit, request)
    record = revoke(kit, "ash")
    assert record.state is SiteState.REVOKED
    assert record.revoked is not None
    assert not bundle.exists()
    assert revoke(kit, "ash") == record == find(kit, "ash")
    with pytest.raises(InputError, match="for good"):
        admit(kit, request, replace_key=True)
    admit(kit, make_request(config, new_key=True))
    assert find(kit, "ash").state is SiteState.ADMITTED
    assert find(kit, "ash").former == (FormerKey(record.fingerprint),)


def test_whoever_was_not_admitted_cannot_be_revoked(kit, tmp_path):
    with pytest.raises(InputError, match="no site 'ash' was admitted; there are: none yet"):
        revoke(kit, "ash")
    admit(kit, asked(tmp_path, "birch")[1])
    with pytest.raises(InputError, match="there are: birch"):
        revoke(kit, "../birch")


# What goes wrong around it


def test_a_bundle_that_cannot_be_written_admits_nobody(kit, tmp_path):
    _, request = asked(tmp_path)
    (tmp_path / "file").write_text("hello")
    with pytest.raises(InputError, match=r"file/ash\.zip: cannot be written"):
        admit(kit, request, out=tmp_path / "file" / "ash.zip")
    assert listed(kit) == ()


def test_a_study_that_cannot_be_read_admits_nobody(kit, tmp_path, study):
    _, request = asked(tmp_path)
    study.write_text(study.read_text().replace("[training]", "[drill]"))
    with pytest.raises(StudyError, match="unknown key 'drill'"):
        admit(kit, request, study)
    with pytest.raises(StudyError, match="no such study"):
        admit(kit, request, tmp_path / "other.toml")
    assert listed(kit) == ()


def test_a_certificate_file_with_the_key_in_it_never_leaves(kit, tmp_path):
    _, request = asked(tmp_path)
    kit.ca_certificate.write_bytes(kit.ca_certificate.read_bytes() + kit.ca_key.read_bytes())
    with pytest.raises(InputError, match=r"ca\.crt of the bundle: holds a private key"):
        admit(kit, request)
    assert not any(kit.bundles.iterdir())
    assert listed(kit) == ()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param("{", r"ash\.json: not a site's record \(JSONDecodeError\)", id="not JSON"),
        pytest.param("[]", r"not a site's record", id="a list"),
        pytest.param("7", r"not a site's record", id="a number"),
        pytest.param('{"site": "ash"}', r"lacks the key 'public_key'", id="fields missing"),
    ],
)
def test_a_spoilt_record_is_a_sentence(kit, content, why):
    (kit.sites / "ash.json").write_text(content)
    with pytest.raises(InputError, match=why):
        listed(kit)


def test_a_record_under_another_name_is_a_sentence(kit, tmp_path):
    admit(kit, asked(tmp_path)[1])
    (kit.sites / "ash.json").rename(kit.sites / "birch.json")
    with pytest.raises(InputError, match=r"birch\.json: the record of another site, 'ash'"):
        listed(kit)


def test_records_are_json_for_other_programs(kit, tmp_path):
    admit(kit, asked(tmp_path)[1])
    found = json.loads((kit.sites / "ash.json").read_text())
    assert found["site"] == "ash"
    assert found["state"] == "admitted"
