"""The console of a coordinator: the same words and the same deeds as the commands."""

import pytest
import tomli_w

from server.console.drawing import curve, shown
from server.console.pages import ServerConsole
from server.deployment.queue import QueueState, find, submit
from server.membership.kit import init_kit
from server.membership.records import Admitted, SiteState, save
from server.membership.records import find as find_site
from tests.consoles import Visitor, words
from tests.federations import tiny_study
from tests.kits import asked, free_port
from tests.server.journals import a_round, called, event, left_out, started, validated, write

PORT = 9467
STUDY = tiny_study(study={"name": "liver"})


@pytest.fixture
def kit(tmp_path):
    made = init_kit(tmp_path / "kit", "localhost", free_port(), name="kidney", superlink_port=free_port())
    for name in ("ash", "birch"):
        save(made, Admitted(name, f"ecdsa {name}", f"SHA256:{name}", "2026-01-01T00:00:00+00:00", "0.1.0"))
    return made


@pytest.fixture
def visitor(kit):
    return Visitor(ServerConsole(kit).app(PORT), PORT)


def test_the_first_page_has_programs_sites_and_runs(kit, visitor):
    said = words(visitor.see("/"))
    for part in (
        "federation kidney",
        "superlink not running",
        "ash admitted not known -",
        "no run was submitted",
    ):
        assert part in said
    submit(kit, STUDY, name="first")
    assert "first liver" in words(visitor.see("/"))
    assert f"mmare-server status --kit {kit.folder}" in said


def test_a_run_has_its_rounds_curves_alerts_and_sites(kit, visitor):
    lines = [started(), called("ash"), called("birch")]
    for number in range(1, 5):
        lines += [
            *a_round(number, ["ash"], at=10 * number),
            left_out("birch", number, "no answer before the deadline"),
        ]
        lines.append(validated(number, 0.5 + number / 10, at=10 * number + 3))
    write(kit.runs / "first", lines)
    page = visitor.see("/run/first")
    assert "SiteSilent: birch missed the last 4 rounds" in words(page)
    assert "Pooled validation balanced accuracy, rounds 1 to 4: from 0.600 to 0.900, last 0.900" in page
    assert "<polyline" in page
    assert "/run/first" in visitor.see("/runs")
    assert "Abort" not in page  # it was not submitted


def test_a_study_is_submitted_and_its_run_aborted(kit, visitor):
    file = tomli_w.dumps(STUDY.to_dict()).encode()
    status, said = visitor.send("/submit", {"study": file}, wait="7d", name="first")
    assert (status, "Queued: first, study liver." in said) == (303, True)
    assert find(kit, "first").request(kit).study == STUDY
    assert find(kit, "first").until
    assert f"mmare-server abort first --kit {kit.folder}" in words(visitor.see("/run/first"))
    assert "first: aborted" in visitor.send("/abort/first")[1]
    assert find(kit, "first").state is QueueState.ABORTED


@pytest.mark.parametrize(
    ("path", "files", "fields", "why"),
    [
        pytest.param("/submit", {}, {}, "study: no file was chosen", id="no file"),
        pytest.param("/submit", {"study": b""}, {}, "study: no file was chosen", id="empty"),
        pytest.param("/submit", {"study": b"\xff\x00"}, {}, "study.toml", id="no toml"),
        pytest.param("/submit", {"study": b"[study]\nname = 3"}, {}, "study.toml", id="no study"),
        pytest.param("/submit", {"study": None}, {"wait": "soon"}, "expected a time such as 30m", id="wait"),
        pytest.param("/submit", {"study": None}, {"name": "../x"}, "--name is '../x'", id="name"),
        pytest.param("/admit", {"request": b"{}"}, {}, "not a request to join", id="no request"),
        pytest.param("/abort/nobody", {}, {}, "no run 'nobody' was submitted", id="no run"),
        pytest.param("/revoke/nobody", {}, {}, "no site 'nobody' was admitted", id="no site"),
    ],
)
def test_bad_input_is_one_sentence(visitor, path, files, fields, why):
    whole = tomli_w.dumps(STUDY.to_dict()).encode()
    status, said = visitor.send(
        path, {key: whole if value is None else value for key, value in files.items()}, **fields
    )
    assert status == 400
    assert why in said


@pytest.mark.parametrize("path", ["/run/nobody", "/run/../kit.toml", "/bundle/nobody", "/bundle/../ca.key"])
def test_only_runs_and_bundles_of_the_kit_are_shown(visitor, path):
    assert visitor.ask("GET", path)[0] == 400


def test_a_hospital_is_admitted_its_bundle_taken_and_its_key_revoked(kit, visitor, tmp_path):
    config, request = asked(tmp_path, "cedar")
    status, said = visitor.send("/admit", {"request": request.read_bytes()})
    record = find_site(kit, "cedar")
    assert (status, f"Admitted: cedar, key {record.fingerprint}" in said) == (303, True)
    status, headers, _ = visitor.ask("GET", "/bundle/cedar")
    assert (status, headers["content-disposition"]) == (200, 'attachment; filename="cedar.zip"')
    assert "Revoked: cedar" in visitor.send("/revoke/cedar")[1]
    assert find_site(kit, "cedar").state is SiteState.REVOKED
    assert config.id == "cedar"


def test_a_flat_or_single_curve_is_drawn():
    assert "from 0.500 to 0.500" in curve("score", [(1, 0.5)])
    assert "nan" not in curve("score", [(1, 0.5), (2, 0.5)])


def test_words_of_a_terminal_lose_their_colours():
    assert shown("[red]gone[/]", "x") == ["<p>gone</p>"]
    assert event("x")["event"] == "x"
