import stat
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.privacy.approvals import ApprovalFolder, FixedApprovals, default_releases
from client.privacy.study_summary import study_in_words
from mmare.errors import DataError, RunError, StudyError
from mmare.models.registry import build_model
from mmare.study.study import load_study
from sites.config import load_site
from tests.federations import tiny_federation, tiny_study

STUDY = tiny_study()
RUNNER = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})


@pytest.fixture
def federation(tmp_path):
    return tiny_federation(tmp_path / "federation", sites=("ash", "birch"), patients=16)


@pytest.fixture
def site(federation):
    return load_site(federation / "ash" / "site.toml")


def approve(federation, *arguments, site="ash", text=None):
    command = ["approve", str(federation / "study.toml"), "--site", str(federation / site / "site.toml")]
    result = RUNNER.invoke(app, [*command, *arguments], input=text)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_recorded_approval_is_found_with_its_study(tmp_path):
    folder = ApprovalFolder(tmp_path)
    assert folder.find(STUDY.hash) is None
    path = folder.record(STUDY, 17)
    found = ApprovalFolder(tmp_path).find(STUDY.hash)
    assert (found.study, found.max_releases, found.study_hash) == (STUDY, 17, STUDY.hash)
    assert found.user
    assert path.name == f"{STUDY.hash}.toml"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.study_hash for each in folder.all()] == [STUDY.hash]


def test_name_and_seed_are_not_part_of_an_approval(tmp_path):
    folder = ApprovalFolder(tmp_path)
    folder.record(STUDY, None)
    assert folder.find(replace(STUDY, name="again", seed=9).hash).max_releases is None
    assert folder.find(tiny_study(training={"rounds": 5}).hash) is None


def test_only_the_seeds_of_an_approval_are_approved(tmp_path):
    folder = ApprovalFolder(tmp_path)
    folder.record(STUDY, None)
    assert folder.find(STUDY.hash).seeds == {STUDY.seed}
    folder.record(STUDY, None, seeds=[7, 9])
    assert ApprovalFolder(tmp_path).find(STUDY.hash).seeds == {STUDY.seed, 7, 9}
    path = tmp_path / "approved" / f"{STUDY.hash}.toml"
    path.write_text(path.read_text().replace("9,", "'9',"))
    assert ApprovalFolder(tmp_path).find(STUDY.hash) is None  # damaged


def test_the_command_names_further_seeds(federation, site):
    said = approve(federation, "--yes", "--seed", "7", "--seed", "9").stdout
    assert "another seed than 3, 7, 9" in " ".join(said.split())
    assert ApprovalFolder(site.folder).find(STUDY.hash).seeds == {3, 7, 9}


def test_approving_and_revoking_need_no_restart(tmp_path):
    running, typing = ApprovalFolder(tmp_path), ApprovalFolder(tmp_path)
    assert running.find(STUDY.hash) is None
    typing.record(STUDY, 3)
    assert running.find(STUDY.hash).max_releases == 3
    first = running.find(STUDY.hash).time
    typing.record(STUDY, 300)
    assert running.find(STUDY.hash).max_releases == 300
    assert running.find(STUDY.hash).time >= first
    typing.revoke(STUDY.hash)
    assert running.find(STUDY.hash) is None
    with pytest.raises(DataError, match="no approval of the study"):
        typing.revoke(STUDY.hash)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("rounds = 4", "rounds = 400", id="study"),
        pytest.param('study_hash = "', 'study_hash = "f', id="hash"),
        pytest.param("max_releases = 17", 'max_releases = "many"', id="limit"),
        pytest.param("[approval]", "[approved]", id="head"),
        pytest.param("[study]", "[study", id="toml"),
        pytest.param("min_count = 0", "min_count = -1", id="no-study"),
    ],
)
def test_a_file_that_was_changed_approves_nothing(tmp_path, caplog, old, new):
    folder = ApprovalFolder(tmp_path)
    path = folder.record(STUDY, 17)
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    assert folder.find(STUDY.hash) is None
    assert folder.all() == []
    assert "approves nothing" in caplog.text


def test_a_file_under_another_name_approves_nothing(tmp_path):
    folder = ApprovalFolder(tmp_path)
    other = tiny_study(training={"rounds": 5})
    path = folder.record(STUDY, 17)
    path.rename(path.with_name(f"{other.hash}.toml"))
    assert folder.find(other.hash) is None


@pytest.mark.parametrize("name", ["", "..", "../approved", "a" * 63, "A" * 64, "/etc/passwd"])
def test_an_invalid_hash_opens_no_file(tmp_path, name):
    assert ApprovalFolder(tmp_path).find(name) is None


def test_fixed_approvals_need_no_file():
    assert FixedApprovals([STUDY.hash]).find(STUDY.hash).max_releases is None
    assert FixedApprovals([STUDY.hash]).find("a" * 64) is None


# The summary


def test_the_summary_names_what_is_computed_released_and_withheld(site):
    study = tiny_study(privacy={"min_count": 7})
    text = " ".join(study_in_words(study, site, 40).split())
    numbers = sum(value.numel() for value in build_model(study).parameters())
    for words in (
        study.hash,
        "learns to tell no from yes: up to 4 rounds, in each 1 pass(es) over the train rows of patients.csv",
        "From ct: precomputed numbers, 8 numbers per patient.",
        "From wsi: precomputed numbers, 16 numbers per patient.",
        f"up to {numbers:,} parameters of the model",
        "Groups of fewer than 7 are withheld.",
        "The smallest group disclosed has 7 rows",
        "[policy] max_norm sets a limit",
        "At most 40 answers are released from now on",
        "A row, a scan, a text, an embedding, a patient's id, a path or a file name.",
    ):
        assert words in text


def test_the_summary_names_the_stricter_limit(site):
    text = study_in_words(STUDY, replace(site, min_count=12, max_norm=2.5), 40)
    assert "has 12 rows" in text
    assert "(L2 norm) of at most 2.5" in text
    stricter = tiny_study(federation={"min_sites": 1, "max_norm": 1.5})
    assert "(L2 norm) of at most 1.5" in study_in_words(stricter, replace(site, max_norm=2.5), 40)


def test_the_summary_says_that_a_site_has_no_limits(site):
    assert "Groups of any size are disclosed" in study_in_words(STUDY, site, 40)


def test_the_summary_names_missing_modalities_and_local_parts(site):
    study = tiny_study(federation={"min_sites": 1, "local": ["head"], "wire": "float16"})
    modalities = {"ct": site.modalities["ct"]}
    text = study_in_words(study, replace(site, modalities=modalities), 40)
    assert "From wsi: nothing; this site does not have it." in text
    assert "Not sent: head of the model" in text
    assert "the change of up to" in text


def test_half_precision_halves_the_bytes(site):
    def megabytes(wire):
        study = tiny_study(model={"width": 256}, federation={"min_sites": 1, "wire": wire})
        text = " ".join(study_in_words(study, site, 40).split())
        return float(text.split(" parameters of the model (")[1].split(" MB")[0])

    assert megabytes("float32") == pytest.approx(2 * megabytes("float16"), abs=0.15)
    assert megabytes("float16") > 0.3


# The command


def test_a_yes_is_recorded(federation, site):
    result = approve(federation, text="y\n")
    study = load_study(federation / "study.toml")
    found = ApprovalFolder(site.folder).find(study.hash)
    assert result.exit_code == 0
    assert "What will leave" in result.stdout
    assert found.max_releases == default_releases(study)
    assert f"approved: {site.folder}" in result.stdout


@pytest.mark.parametrize("text", ["n\n", "\n"])
def test_any_other_reply_is_a_no(federation, site, text):
    with pytest.raises(RunError, match="not approved"):
        approve(federation, text=text)
    assert ApprovalFolder(site.folder).all() == []


def test_no_input_is_a_no(federation, site):
    assert approve(federation, text="").exit_code == 1
    assert ApprovalFolder(site.folder).all() == []


def test_an_approval_is_revoked(federation, site):
    approve(federation, "--yes")
    assert "no longer approved: tiny" in approve(federation, "--revoke").stdout
    assert ApprovalFolder(site.folder).all() == []
    with pytest.raises(DataError):
        approve(federation, "--revoke")


def test_the_hospital_s_own_limit_of_answers_applies(federation, site):
    file = site.folder / "site.toml"
    file.write_text(file.read_text().replace("[policy]\n", "[policy]\nmax_releases = 6\n"))
    assert "At most 6 answers" in approve(federation, "--yes").stdout
    assert ApprovalFolder(site.folder).all()[0].max_releases == 6


def test_a_study_that_no_model_can_serve_is_not_approved(federation, site):
    file = federation / "study.toml"
    file.write_text(file.read_text().replace('name = "mmare"', 'name = "elsewhere"'))
    with pytest.raises(StudyError):
        approve(federation, "--yes")
    assert ApprovalFolder(site.folder).all() == []


def test_help_has_an_example():
    result = RUNNER.invoke(app, ["approve", "--help"])
    assert "Example: mmare-site approve study.toml --site " in " ".join(result.stdout.split())
