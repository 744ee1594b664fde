"""The commands of ``mmare-sim prepare``: flags, what is shown, and what refuses."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mmare.errors import DataError, InputError, StudyError
from mmare.study import PromptMode, load_study
from simulation.prepare import app
from sites.federation import site_folders
from tests.data_folder import data_folder


def call(*arguments: object):
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def heart(tmp_path):
    rows = [
        f"p{row},{'Ost' if row % 2 else 'West'},{'ill' if row % 3 else 'healthy'},{row},?"
        for row in range(30)
    ]
    rows[0] = rows[0].replace("?", "red")
    rows[1] = rows[1].replace(",1,", ",-9,").replace("?", "blue")
    (tmp_path / "heart.csv").write_text("\n".join(["id,place,outcome,age,colour", *rows]))
    return tmp_path / "heart.csv"


def flags(heart, *more: object):
    return (
        *(
            "table",
            "--table",
            heart,
            "--out",
            heart.parent / "fed",
            "--id-column",
            "id",
            "--site-column",
            "place",
        ),
        *("--label-column", "outcome", "--classes", "healthy, ill", "--missing-values", "?,-9", *more),
    )


def test_table_shows_what_was_written_and_what_to_type_next(heart):
    result = call(*flags(heart, "--modality", "person=age,colour", "--categorical", "colour", "--seed", "4"))
    assert result.exit_code == 0, result.exception
    rows = {line.split()[0]: line.split() for line in result.output.splitlines() if line.strip()}
    assert rows["site"] == ["site", "patients", "train", "val", "test", "person"]
    assert rows["ost"][:2] == ["ost", "15"]
    assert rows["ost"][-1] == "100%"
    assert f"mmare-sim run {heart.parent / 'fed'} --out {heart.parent / 'fed'}-run" in result.output
    study = load_study(heart.parent / "fed" / "study.toml")
    assert (study.seed, study.positive, study.modalities[0].width) == (4, "ill", 5)


def test_table_takes_two_modalities_repeated_flags_and_another_positive(heart):
    more = (
        "--modality",
        "a=age",
        "--modality",
        "c=colour",
        "--categorical",
        "colour",
        "--positive",
        "healthy",
    )
    result = call(*flags(heart, *more))
    assert result.exit_code == 0, result.exception
    study = load_study(heart.parent / "fed" / "study.toml")
    assert [modality.name for modality in study.modalities] == ["a", "c"]
    assert study.positive == "healthy"


@pytest.mark.parametrize(
    ("more", "error", "sentence"),
    [
        pytest.param((), StudyError, "no modality: expected at least one --modality", id="no-modality"),
        pytest.param(
            ("--modality", "age"), StudyError, "--modality is 'age', expected NAME=VALUE", id="no-name"
        ),
        pytest.param(
            ("--modality", "=age"), StudyError, "--modality is '=age', expected NAME=VALUE", id="empty-name"
        ),
        pytest.param(
            ("--modality", "a=age", "--modality", "a=colour"),
            StudyError,
            "--modality names 'a' twice",
            id="twice",
        ),
        pytest.param(
            ("--modality", "a=agee"), DataError, r"no column 'agee' \(did you mean 'age'\?\)", id="column"
        ),
        pytest.param(("--features", "ct=none.npz"), DataError, "no such features file", id="features"),
    ],
)
def test_table_refuses(heart, more, error, sentence):
    result = call(*flags(heart, *more))
    assert isinstance(result.exception, error)
    assert error.exit_code == 2
    with pytest.raises(InputError, match=sentence):
        raise result.exception
    assert not (heart.parent / "fed").exists()


def test_synthetic(tmp_path):
    result = call("synthetic", "--out", tmp_path / "fed", "--patients", 20, "--seed", 2)
    assert result.exit_code == 0, result.exception
    assert "clinical" in result.output
    assert [site.id for site in site_folders(tmp_path / "fed")] == ["east", "north", "west"]
    assert isinstance(call("synthetic", "--out", tmp_path / "fed", "--patients", 20).exception, DataError)
    assert call("synthetic", "--out", tmp_path / "fed", "--patients", 25, "--overwrite").exit_code == 0


def test_synthetic_scans(tmp_path):
    result = call("synthetic", "--kind", "scans", "--patients", 10, "--out", tmp_path / "fed")
    assert result.exit_code == 0, result.exception
    assert "- cohort: 30 rows of the table have volumes" in result.output
    assert [site.id for site in site_folders(tmp_path / "fed")] == ["guys", "hh", "iop"]
    assert isinstance(call("synthetic", "--kind", "scans", "--out", tmp_path / "fed").exception, DataError)
    more = ("--keep-incomplete", "--with-clinical", "--prompt-mode", "explicit", "--seed", "3")
    loss = ("--mechanism", "mcar", "--missing-rate", "0.5")
    source = tmp_path / "fed" / "scans"
    result = call("ixi", "--source", source, "--task", "epoch", "--out", tmp_path / "ixi", *more, *loss)
    assert result.exit_code == 0, result.exception
    assert "- mcar at 0.5: 0." in result.output
    study = load_study(tmp_path / "ixi" / "study.toml")
    assert (study.classes, study.seed) == (("young", "mid", "old"), 3)
    assert [modality.name for modality in study.modalities] == ["t1", "t2", "pd", "mra", "clinical"]
    assert study.modalities[-1].prompt_mode is PromptMode.EXPLICIT


@pytest.mark.parametrize(
    "wrong", [("--kind", "slides"), ("--seed", "x"), ("--patience", "3"), ("--patients", "many")]
)
def test_flags_that_do_not_exist_exit_with_2(tmp_path, wrong):
    assert call("synthetic", "--out", tmp_path / "fed", *wrong).exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.data
def test_mmist(tmp_path):
    source = data_folder("mmist")
    more = ("--by", "hospital", "--split", "official", "--cohort", "thesis", "--without", "wsi,mri")
    settings = ("--min-patients", "80", "--prompt-mode", "explicit", "--seed", "3")
    result = call("mmist", "--source", source, "--out", tmp_path / "fed", *more, *settings)
    assert result.exit_code == 0, result.exception
    assert [site.id for site in site_folders(tmp_path / "fed")] == ["b0", "bp", "cptac", "tcga-other"]
    study = load_study(tmp_path / "fed" / "study.toml")
    assert [modality.name for modality in study.modalities] == ["ct", "clinical"]
    assert study.modalities[1].prompt_mode is PromptMode.EXPLICIT
    assert study.seed == 3


def test_mmist_refuses_another_folder(tmp_path):
    result = call("mmist", "--source", tmp_path, "--out", tmp_path / "fed")
    assert isinstance(result.exception, DataError)


@pytest.mark.parametrize("command", ["ixi", "mmist", "synthetic", "table"])
def test_every_command_has_help_with_an_example(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example: mmare-sim prepare {command} --" in " ".join(result.output.split())


def test_help_does_not_load_pandas():
    program = (
        "import sys, simulation.prepare; sys.exit(bool({'pandas', 'sklearn', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
