import grp
import os
import stat
import zipfile
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import tomli_w
from cryptography.hazmat.primitives.serialization import (
    Encoding,
)

from client.membership.kit import authority_fingerprint, install_bundle, make_request, own_fingerprint
from mmare.errors import InputError
from mmare.host import files
from mmare.study.study import load_study
from mmare.wire.joining import Coordinator, SiteKit
from server.membership.certificates import certificate_fingerprint, new_authority, new_server
from server.membership.kit import Kit, init_kit
from server.membership.records import admit
from tests.federations import tiny_study
from tests.kits import asked, site_config

GROUP = grp.getgrgid(os.getgid()).gr_name


@pytest.fixture
def kit(tmp_path) -> Kit:
    return init_kit(tmp_path / "coordinator", "join.example.org", 8443, "kidney")


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(tiny_study().to_dict()))
    return path


def mode_of(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bundle_of(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def with_entries(bundle, out, **entries):
    """A bundle with other contents; ``None`` takes a file away. Names are given with _ for the dot."""
    with zipfile.ZipFile(bundle) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    found |= {name.replace("_", "."): content for name, content in entries.items()}
    return bundle_of(out, [(name, content) for name, content in found.items() if content is not None])


def test_an_installed_bundle_names_the_coordinator(tmp_path, kit, study):
    config, request = asked(tmp_path)
    bundle = admit(kit, request, study)
    found = install_bundle(bundle, config)
    site = SiteKit(config.coordinator.kit)
    key, study_hash = own_fingerprint(config), load_study(study).hash
    assert found == Coordinator("kidney", "join.example.org", 8443, "ash", key, study_hash)
    assert site.coordinator() == found
    assert site.ca.read_bytes() == kit.ca_certificate.read_bytes()
    assert site.study.read_bytes() == study.read_bytes()
    assert authority_fingerprint(config) == certificate_fingerprint(kit.ca_certificate.read_bytes())
    assert set(contents(site.folder)) == {
        *("node.key", "node.pub", "superexec.secret"),
        *("ca.crt", "study.toml", "coordinator.toml"),
    }


def test_a_later_bundle_replaces_all_of_the_earlier_one(tmp_path, kit, study):
    config, request = asked(tmp_path)
    site = SiteKit(config.coordinator.kit)
    install_bundle(admit(kit, request, study), config)
    moved = init_kit(tmp_path / "moved", "new.example.org")
    install_bundle(admit(moved, request), config)
    assert site.coordinator().host == "new.example.org"
    assert site.ca.read_bytes() == moved.ca_certificate.read_bytes()
    assert not site.study.exists()


@pytest.mark.parametrize("at", range(6))
def test_interrupted_anywhere_a_bundle_is_installed_whole_or_not_at_all(
    tmp_path, kit, study, monkeypatch, at
):
    """Every rename and removal is a point where the process may be killed; the next install repairs it."""
    config, request = asked(tmp_path)
    site = SiteKit(config.coordinator.kit)
    install_bundle(admit(kit, request), config)
    old = contents(site.folder)
    moved = init_kit(tmp_path / "moved", "new.example.org")
    bundle = admit(moved, request, study)
    steps = []
    path_type = type(tmp_path)
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            real = getattr(path_type, name)

            def step(self, *arguments, real=real, **keywords):
                if self.parent == site.folder and self.exists():
                    steps.append(self.name)
                    if len(steps) > at:
                        raise KeyboardInterrupt
                return real(self, *arguments, **keywords)

            patch.setattr(path_type, name, step)
        with pytest.raises(KeyboardInterrupt):
            install_bundle(bundle, config)
    if site.joined.exists():
        assert {name: content for name, content in contents(site.folder).items() if name in old} == old
    else:
        with pytest.raises(InputError, match="mmare-site kit install"):
            site.coordinator()
    install_bundle(bundle, config)
    assert site.coordinator().host == "new.example.org"
    assert site.study.read_bytes() == study.read_bytes()


def test_a_full_disk_leaves_the_earlier_bundle(tmp_path, kit, study, monkeypatch):
    config, request = asked(tmp_path)
    install_bundle(admit(kit, request), config)
    before = contents(config.coordinator.kit)
    bundle = admit(init_kit(tmp_path / "moved", "new.example.org"), request, study)
    real = files.os.fsync

    def full_disk(number: int) -> None:
        if os.fstat(number).st_size == len(study.read_bytes()):
            raise OSError(28, "No space left on device")
        real(number)

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(InputError, match=r"cannot be written \(OSError\)"):
        install_bundle(bundle, config)
    assert contents(config.coordinator.kit) == before


def test_a_bundle_for_another_site_is_refused(tmp_path, kit):
    config, request = asked(tmp_path)
    admit(kit, request)
    other, theirs = asked(tmp_path, "birch")
    before = contents(config.coordinator.kit)
    with pytest.raises(InputError, match=r"for the site 'birch', but \[site\] id is 'ash'"):
        install_bundle(admit(kit, theirs), config)
    assert contents(config.coordinator.kit) == before
    install_bundle(kit.bundles / "birch.zip", other)


def test_a_bundle_for_an_earlier_key_is_refused(tmp_path, kit):
    config, request = asked(tmp_path)
    bundle = admit(kit, request)
    make_request(config, new_key=True)
    with pytest.raises(InputError, match=r"for the key SHA256:.*, but this site's is SHA256:"):
        install_bundle(bundle, config)


def test_a_bundle_needs_a_key(tmp_path, kit):
    _, request = asked(tmp_path)
    bundle = admit(kit, request)
    fresh = site_config(tmp_path / "fresh")
    with pytest.raises(InputError, match=r"node\.key: no key yet; mmare-site kit request"):
        install_bundle(bundle, fresh)
    assert not fresh.coordinator.kit.exists()


def leaf() -> bytes:
    return new_server(new_authority("kidney"), "join.example.org").certificate


def over() -> bytes:
    return new_authority("kidney", datetime.now(UTC) - timedelta(days=4000)).certificate


def forged() -> bytes:
    """A certificate that says it is an authority's, but whose signature is another's."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(new_authority("kidney").certificate)
    other = x509.load_pem_x509_certificate(new_authority("kidney").certificate)
    spoilt = found.public_bytes(Encoding.DER).replace(found.signature[-8:], other.signature[-8:])
    return x509.load_der_x509_certificate(spoilt).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        pytest.param(lambda: {"ca_crt": None}, "lacks ca.crt", id="no certificate"),
        pytest.param(lambda: {"coordinator_toml": None}, "lacks coordinator.toml", id="no address"),
        pytest.param(lambda: {"run_sh": b"rm"}, "holds 'run.sh', expected only", id="a program"),
        pytest.param(lambda: {"../ca_crt": b""}, r"holds '\.\./ca\.crt'", id="a way out"),
        pytest.param(lambda: {"/etc/passwd": b""}, "holds '/etc/passwd'", id="a full path"),
        pytest.param(lambda: {"sub/ca_crt": b""}, "holds 'sub/ca.crt'", id="a folder"),
        pytest.param(lambda: {"study_toml": b" " * (1 << 21)}, "study.toml has more than", id="a bomb"),
        pytest.param(lambda: {"ca_crt": b"hello"}, "ca.crt: not a certificate in PEM format", id="no PEM"),
        pytest.param(lambda: {"ca_crt": leaf()}, "ca.crt: not the certificate of an authority", id="a leaf"),
        pytest.param(
            lambda: {"ca_crt": forged()}, "ca.crt: not the certificate of an authority", id="forged"
        ),
        pytest.param(lambda: {"ca_crt": over()}, "ca.crt: expired on", id="over"),
        pytest.param(
            lambda: {"ca_crt": new_authority("a").certificate + new_authority("b").certificate},
            "ca.crt: 2 certificates, expected one",
            id="two",
        ),
        pytest.param(
            lambda: {"ca_crt": new_authority("a").certificate + new_authority("a").key},
            "holds a private key",
            id="a private key",
        ),
        pytest.param(lambda: {"coordinator_toml": b"host ="}, "coordinator.toml is not TOML", id="no TOML"),
        pytest.param(lambda: {"coordinator_toml": b"\xff"}, "coordinator.toml is not TOML", id="no text"),
        pytest.param(lambda: {"coordinator_toml": b'host = "a"'}, "lacks the key", id="an address cut short"),
        pytest.param(lambda: {"study_toml": b"[study]"}, "study.toml: ", id="no study"),
        pytest.param(
            lambda: {"study_toml": tomli_w.dumps(tiny_study(training={"rounds": 5}).to_dict()).encode()},
            "the hash of its study is [0-9a-f]{64}, but coordinator.toml names none",
            id="another study",
        ),
    ],
)
def test_a_bundle_with_unexpected_content_changes_nothing(tmp_path, kit, entries, why):
    config, request = asked(tmp_path)
    bundle = admit(kit, request)
    before = contents(config.coordinator.kit)
    with pytest.raises(InputError, match=rf"odd\.zip: .*{why}") as raised:
        install_bundle(with_entries(bundle, tmp_path / "odd.zip", **entries()), config)
    assert "\n" not in str(raised.value)
    assert contents(config.coordinator.kit) == before


def test_a_bundle_that_lost_its_study_is_refused(tmp_path, kit, study):
    config, request = asked(tmp_path)
    lost = with_entries(admit(kit, request, study), tmp_path / "odd.zip", study_toml=None)
    with pytest.raises(
        InputError, match=r"odd\.zip: the hash of its study is none, but coordinator\.toml names"
    ):
        install_bundle(lost, config)


def test_a_duplicate_entry_is_refused(tmp_path, kit):
    config, request = asked(tmp_path)
    with zipfile.ZipFile(admit(kit, request)) as archive:
        found = [(name, archive.read(name)) for name in archive.namelist()]
    with pytest.warns(UserWarning, match="Duplicate name"):
        bundle_of(tmp_path / "odd.zip", [*found, found[0]])
    with pytest.raises(InputError, match=r"holds coordinator\.toml twice"):
        install_bundle(tmp_path / "odd.zip", config)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "not a bundle, or damaged", id="empty"),
        pytest.param(b"hello", "not a bundle, or damaged", id="text"),
        pytest.param(b"\0" * (5 << 20), "more than", id="too large"),
    ],
)
def test_an_invalid_zip_is_an_error(tmp_path, content, why):
    config, _ = asked(tmp_path)
    (tmp_path / "odd.zip").write_bytes(content)
    with pytest.raises(InputError, match=rf"odd\.zip: {why}"):
        install_bundle(tmp_path / "odd.zip", config)


def test_an_unsupported_compression_is_refused(tmp_path):
    config, _ = asked(tmp_path)
    bundle_of(tmp_path / "odd.zip", [("ca.crt", b"x" * 99)], zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match="not a bundle, or damaged"):
        install_bundle(tmp_path / "odd.zip", config)


def test_a_missing_bundle_is_an_error(tmp_path):
    config, _ = asked(tmp_path)
    with pytest.raises(InputError, match="no such bundle"):
        install_bundle(tmp_path / "ash.zip", config)
    with pytest.raises(InputError, match=r"cannot be read \(IsADirectoryError\)"):
        install_bundle(tmp_path, config)


def test_a_bundle_with_changed_bytes_is_installed_unchanged_or_refused(tmp_path, kit, study):
    """Damage anywhere is a sentence; what is kept is what the coordinator wrote."""
    config, request = asked(tmp_path)
    bundle = admit(kit, request, study).read_bytes()
    install_bundle(kit.bundles / "ash.zip", config)
    whole = contents(config.coordinator.kit)
    draw = np.random.default_rng(7)
    path, refused = tmp_path / "odd.zip", 0
    for turn in range(300):
        spoilt = bytearray(bundle)
        for place in draw.integers(len(spoilt), size=draw.integers(1, 4)):
            spoilt[place] = draw.integers(256)
        path.write_bytes(spoilt if turn % 2 else spoilt[: draw.integers(len(spoilt))])
        try:
            install_bundle(path, config)
        except InputError:
            refused += 1
        assert contents(config.coordinator.kit) == whole
    assert refused > 200


def test_an_installed_kit_is_closed_to_others_and_open_to_the_relays_group(tmp_path, kit):
    config = site_config(tmp_path / "ash", more=f'[worker]\ngroup = "{GROUP}"')
    install_bundle(admit(kit, make_request(config)), config)
    site = SiteKit(config.coordinator.kit)
    assert mode_of(site.folder) == 0o750
    assert mode_of(site.ca) == mode_of(site.joined) == 0o644


def test_a_missing_authority_is_an_error(tmp_path):
    config, _ = asked(tmp_path)
    with pytest.raises(InputError, match=r"ca\.crt: not there; mmare-site kit install"):
        authority_fingerprint(config)
