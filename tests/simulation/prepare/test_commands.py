"""The commands of ``mmare-sim prepare``: flags, what is shown, and what refuses."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from client.data.dataset import load_data
from client.data.embed import embed_site
from mmare.errors import DataError, InputError, StudyError
from mmare.study.choices import PromptMode
from mmare.study.study import load_study
from simulation.prepare.commands import app
from simulation.prepare.embed_first import embedding_first
from sites.datasets.ixi import IxiOptions, ixi_federation, ixi_study
from sites.datasets.synthetic import prepare_synthetic
from sites.federation import site_folders, write_federation
from sites.manifest import load_manifest
from sites.missing.amputate import take_away
from sites.missing.plan import Missingness
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


def test_table_takes_quoted_names_missing_codes_and_a_columns_file(tmp_path):
    rows = [
        f'{row},{("o", "w")[row % 2]},{("ill", "well")[row % 3 == 0]},"{row},5";-9' for row in range(1, 31)
    ]
    lines = [row.replace(",", ";", 3).replace('"', "") for row in rows]
    (tmp_path / "t.csv").write_text("\n".join(["id;place;outcome;Na, serum;age", *lines]), encoding="utf-8")
    (tmp_path / "columns.toml").write_text('[modality.b]\nprefix = "a"\nlog = true\n', encoding="utf-8")
    base = [*flags(tmp_path / "t.csv")]
    base[base.index("healthy, ill")] = "well,ill"
    base[base.index("?,-9")] = "age=-8"
    more = ("--modality", 'a="Na, serum"', "--decimal", ",", "--columns", tmp_path / "columns.toml")
    result = call(*base, *more, "--missing-values", "?")
    assert "age is '-9' (in 30 rows), expected a number above -1" in str(result.exception)
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("-9", "1"), encoding="utf-8")
    result = call(*base, *more)
    assert result.exit_code == 0, result.exception
    again = call(*base, "--encoding", tmp_path / "fed" / "encoding.json", "--decimal", ",", "--overwrite")
    assert again.exit_code == 0, again.exception
    assert isinstance(call(*base, *more, "--decimal", ";").exception, StudyError)


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


def test_synthetic_for_trials_of_aggregation(tmp_path):
    more = ("--sites", 4, "--pattern", "rare", "--signal", "flair=2.5", "--patients", 20)
    result = call("synthetic", "--out", tmp_path / "fed", *more)
    assert result.exit_code == 0, result.exception
    assert "- rare: only east has flair" in result.output
    assert len(site_folders(tmp_path / "fed")) == 4
    wrong = call("synthetic", "--out", tmp_path / "no", "--signal", "flair=much")
    with pytest.raises(StudyError, match="--signal is 'much', expected a number"):
        raise wrong.exception


def test_what_was_removed_is_shown_and_written(tmp_path):
    loss = ("--mechanism", "mnar", "--missing-rate", "0.4", "--slope", "3", "--site-missing", "west=mar:0.1")
    driven = ("--driver", "pc1", "--driver", "age")
    results = [
        call(
            "synthetic", "--out", tmp_path / name, "--patients", 20, "--pattern", "exclusive", *loss, *driven
        )
        for name in ("a", "b")
    ]
    assert results[0].exit_code == 0, results[0].exception
    assert [path.name for path in tmp_path.iterdir() if path.name not in {"a", "b"}] == []
    trees = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    ]
    assert trees[0] == trees[1]
    report = json.loads((tmp_path / "a" / "amputation.json").read_text())
    assert (report["driver"], report["slope"], report["pattern"]) == ("pc1", 3.0, "exclusive")
    assert report["sites"]["west"]["driver"] == "age"
    rows = [
        line.split()
        for line in results[0].output.splitlines()
        if "mnar on pc1" in line or "mar on age" in line
    ]
    for site, *words in rows[:3]:
        assert words[:4] == [report["sites"][site]["mechanism"], "on", *words[2:4]]
        assert float(words[3]) == report["sites"][site]["rate"]
        cells = dict(zip(("t1", "t2", "flair", "clinical"), words[4:], strict=True))
        assert [name for name, word in cells.items() if word == "never"] == report["sites"][site]["never"]
        for name, cell in report["sites"][site]["modalities"].items():
            assert float(cells[name]) == pytest.approx(cell["achieved"], abs=0.0051)
    assert "mnar on pc1 at 0.4, west mar on age at 0.1: 0." in results[0].output
    assert call("synthetic", "--out", tmp_path / "a", "--patients", 20, "--overwrite").exit_code == 0
    assert not (tmp_path / "a" / "amputation.json").exists()


def test_table_removes_modalities(heart):
    heart.write_text(heart.read_text().replace("-9", "9"))
    groups = ("--modality", "a=age", "--modality", "b=age")
    loss = ("--mechanism", "mnar", "--missing-rate", "0.3", "--driver", "label")
    result = call(*flags(heart, *groups, *loss))
    assert result.exit_code == 0, result.exception
    assert "- mnar on label at 0.3: 0." in result.output


def test_the_prompt_is_embedded_first_and_nothing_of_it_stays(tmp_path):
    """The first principal component of prompts, against scikit-learn on the same embeddings."""
    out = tmp_path / "fed"
    shape = {"patients": 20, "pattern": "complete"}
    seen = {}
    with embedding_first(out, Console(quiet=True)) as embed:

        def watched(study, sites, names):
            seen.update(embed(study, sites, names))
            assert any(path.name.endswith(".embed") for path in tmp_path.iterdir())
            return seen

        prepare_synthetic(out=out, missing=Missingness("mnar", 0.4), embed=watched, **shape)
    assert [path.name for path in tmp_path.iterdir()] == ["fed"]
    assert set(seen) == {"clinical"}
    whole = prepare_synthetic(out=tmp_path / "whole", **shape)
    (east, *_) = site_folders(tmp_path / "whole")
    data = load_data(east, whole.study)
    ids = load_manifest(east.manifest, whole.study, 0).patient_ids
    for row, patient in enumerate(ids):
        assert seen["clinical"][patient].tolist() == data.embedding[3][row].tolist()
    assert len(seen["clinical"]) == 60


def test_a_site_without_texts_is_passed_over(tmp_path):
    seen = {}
    with embedding_first(tmp_path / "fed", Console(quiet=True)) as embed:

        def poorer(study, sites, names):
            seen.update(embed(study, [replace(sites[0], columns={}), *sites[1:]], names))
            return seen

        prepare_synthetic(
            out=tmp_path / "fed",
            patients=20,
            pattern="complete",
            missing=Missingness("mnar", 0.4),
            embed=poorer,
        )
    assert {patient.split("-")[0] for patient in seen["clinical"]} == {"north", "west"}


@pytest.mark.slow
def test_scans_are_embedded_first_and_their_embeddings_are_kept(tmp_path):
    """Heads in volumes of 8 x 16 x 16: what mnar looked at is in the caches, a run encodes nothing anew."""
    prepare_synthetic("scans", out=tmp_path / "drawn", patients=10)
    options = IxiOptions("sex", with_clinical=True, complete=False)
    source = tmp_path / "drawn" / "scans"
    whole, _ = ixi_federation(source, options, lambda path: str(path.resolve()))
    sites = [replace(site, manifest=site.manifest.head(4)) for site in whole]
    study = ixi_study(options, "med3d-resnet18-random", (8, 16, 16))
    ids = [str(patient) for site in sites for patient in site.manifest["patient_id"]]
    out = tmp_path / "fed"
    with embedding_first(out, Console(quiet=True)) as embed:
        taken = take_away(sites, study, Missingness("mnar", 0.5), pd.DataFrame(index=ids), embed=embed)
        prepared = write_federation(out, study, taken.sites, amputation=taken.amputation)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn", "fed"]
    for site in site_folders(out):
        report = embed_site(site, prepared.study)
        assert (report.encoded, report.refused) == (0, ())
        assert report.cached == sum(
            number
            for name, number in next(s for s in prepared.sites if s.id == site.id).present.items()
            if name != "clinical"
        )
    for site in taken.amputation["sites"].values():
        assert site["driver"] == "pc1"


def test_mnar_on_scans_without_weights_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_synthetic("scans", out=tmp_path / "drawn", patients=10)
    source = tmp_path / "drawn" / "scans"
    arguments = ("ixi", "--source", source, "--task", "sex", "--keep-incomplete", "--out", tmp_path / "fed")
    loss = ("--mechanism", "mnar", "--missing-rate", "0.3")
    sentence = "embeds t1 with med3d-resnet18 first, and its weights are missing; .*-random .* --driver label"
    with pytest.raises(InputError, match=sentence):
        raise call(*arguments, *loss).exception
    (tmp_path / "weights").mkdir()
    with pytest.raises(InputError, match="first, and its weights cannot be used"):
        raise call(*arguments, *loss).exception
    with pytest.raises(
        StudyError, match=r"--encoder is 'resnet', expected one of med3d-resnet18, .*-random$"
    ):
        raise call(*arguments, "--encoder", "resnet").exception
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn", "weights"]
    result = call(*arguments, *loss, "--driver", "label", "--encoder", "med3d-resnet18-random")
    assert result.exit_code == 0, result.exception
    assert load_study(tmp_path / "fed" / "study.toml").modalities[0].encoder == "med3d-resnet18-random"


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


@pytest.mark.data
def test_mmist_by_what_each_modality_shows(tmp_path):
    loss = ("--mechanism", "mnar", "--missing-rate", "0.4", "--site-missing", "cptac=0.2")
    result = call("mmist", "--source", data_folder("mmist"), "--out", tmp_path / "fed", *loss)
    assert result.exit_code == 0, result.exception
    report = json.loads((tmp_path / "fed" / "amputation.json").read_text())
    for site, rate in (("tcga", 0.4), ("cptac", 0.2)):
        for cell in report["sites"][site]["modalities"].values():
            assert cell["mean_probability"] == pytest.approx(rate, abs=1e-6)


def test_mmist_refuses_another_folder(tmp_path):
    result = call("mmist", "--source", tmp_path, "--out", tmp_path / "fed")
    assert isinstance(result.exception, DataError)


@pytest.mark.parametrize("command", ["ixi", "mmist", "synthetic", "table"])
def test_every_command_has_help_with_an_example(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example: mmare-sim prepare {command} --" in " ".join(result.output.split())


def test_table_reads_semicolons_and_counts_what_it_leaves_out(tmp_path):
    rows = [f"p{row};Köln;{row % 2}.0;{row}" for row in range(20)]
    path, out = tmp_path / "t.csv", tmp_path / "fed"
    path.write_text("\n".join(["id;place;y;age", *rows, "p20;Köln;;1", "p21;Köln;1;"]), encoding="cp1252")
    given = ("table", "--table", path, "--out", out, "--id-column", "id", "--site-column", "place")
    more = ("--label-column", "y", "--classes", "0,1", "--modality", "m=age")
    with pytest.raises(DataError, match=r"not UTF-8 text.*--encoding-of-text"):
        raise call(*given, *more).exception
    text = ("--encoding-of-text", "cp1252")
    with pytest.raises(DataError, match="1 such rows; --drop-unlabelled"):
        raise call(*given, *more, *text, "--delimiter", ";").exception
    result = call(*given, *more, *text, "--drop-unlabelled", "--drop-empty")
    assert result.exit_code == 0, result.exception
    assert "- 1 row without a label left out" in result.output
    assert "- 1 row without any modality left out" in result.output
    assert site_folders(out)[0].id == "koln"
