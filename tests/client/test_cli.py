"""``mmare-site``: what a person at a hospital types, reads, and gets as exit code."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from client.cli import app, main
from mmare.errors import DataError, InputError, RunError, StudyError
from tests.client.data.test_embed import (
    all_zero,
    constant,
    not_finite,
    truncated,
    write_scan,
    write_series,
    write_site,
)
from tests.federations import tiny_federation

RUNNER = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})
PROGRAM = Path(sys.executable).parent / "mmare-site"


def invoke(*arguments: object):
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def federation(tmp_path):
    folder = write_site(tmp_path / "federation", [{"t1": f"{row}.nii.gz"} for row in range(3)])
    for row in range(3):
        write_scan(folder / "elm" / f"{row}.nii.gz", row)
    return folder


def site_of(federation: Path) -> Path:
    return federation / "elm" / "site.toml"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["embed"], id="embed"),
        pytest.param(["check"], id="check"),
        pytest.param(["convert"], id="convert"),
        pytest.param(["weights", "import"], id="weights import"),
    ],
)
def test_help_has_an_example(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert f"Example: mmare-site {' '.join(command)} " in " ".join(result.stdout.split())


def test_embed_counts_and_tells_that_features_are_untrained(federation):
    result = invoke("embed", site_of(federation))
    assert result.exit_code == 0
    assert "3 encoded, 0 there before, 0 cannot be used" in result.stdout
    assert "UNTRAINED" in result.stderr
    again = invoke("embed", site_of(federation))
    assert again.exit_code == 0
    assert "0 encoded, 3 there before, 0 cannot be used" in again.stdout


def test_embed_takes_another_study(federation, tmp_path):
    invoke("embed", site_of(federation))
    other = tmp_path / "other.toml"
    text = (federation / "study.toml").read_text()
    other.write_text(re.sub(r"size = \[[^]]*\]", "size = [5, 8, 8]", text))
    result = invoke("embed", site_of(federation), "--study", other)
    assert "3 encoded, 0 there before" in result.stdout


def test_check_opens_scans_and_counts_them(federation):
    invoke("embed", site_of(federation))
    result = invoke("check", site_of(federation))
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if line.split()[:1] == ["t1"]]
    assert "3" in line.split()
    assert "p-0" not in result.stdout  # counts only


def test_check_counts_vectors_of_strangers(tmp_path):
    site = tiny_federation(tmp_path / "fed") / "ash"
    ct = site / "ct.csv"
    n_vectors = len(ct.read_text().splitlines())
    ct.write_text(f"{ct.read_text()}stranger,{','.join('1' * 8)}\n".replace(",", ";"))
    result = invoke("check", site / "site.toml")
    assert f"ct: 1 of {n_vectors} vectors in ct.csv match no patient of patients.csv" in result.stdout
    assert "stranger" not in result.stdout  # counts only


def test_check_and_embed_read_a_manifest_of_excel(federation):
    site = site_of(federation)
    manifest = site.parent / "patients.csv"
    pd.read_csv(manifest, dtype=str).to_excel(site.parent / "patients.xlsx", index=False)
    manifest.unlink()
    site.write_text(site.read_text().replace("patients.csv", "patients.xlsx"))
    assert "3 encoded" in invoke("embed", site).stdout
    assert invoke("check", site).exit_code == 0


def test_check_before_embed_encodes_nothing(federation):
    result = invoke("check", site_of(federation))
    assert result.exit_code == 0
    assert not list((federation / "elm").rglob("*.npy"))


def test_check_counts_refused_scans_by_reason(federation):
    constant(federation / "elm" / "1.nii.gz")
    truncated(federation / "elm" / "2.nii.gz")
    with pytest.raises(RunError, match=r"1 scans|2 scans"):
        invoke("check", site_of(federation))


@pytest.mark.parametrize("spoil", [constant, all_zero, not_finite])
def test_check_that_reads_voxels_refuses_what_embed_refuses(federation, spoil):
    spoil(federation / "elm" / "1.nii.gz")
    assert "voxels not opened" in invoke("check", site_of(federation)).stdout
    for command in (["check", site_of(federation), "--read-voxels"], ["embed", site_of(federation)]):
        with pytest.raises(RunError, match="1 scans"):
            invoke(*command)


def test_each_refused_scan_is_one_line_and_the_exit_code_says_so(federation, monkeypatch, capsys):
    truncated(federation / "elm" / "0.nii.gz")
    (federation / "elm" / "2.nii.gz").unlink()
    monkeypatch.setattr(sys, "argv", ["mmare-site", "embed", str(site_of(federation))])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    stdout, stderr = capsys.readouterr()
    lines = stdout.splitlines()
    assert [line for line in lines if re.match(r"t1, data row 1: \S", line)]
    assert [
        line
        for line in lines
        if re.match(r"t1, data row 3: The file .* cannot be read, .* FileNotFoundError", line)
    ]
    assert sum("data row" in line for line in lines) == 2
    assert "1 encoded, 0 there before, 2 cannot be used" in lines[-1]
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "2 scans cannot be used" in errors[0]
    assert "nii" not in stdout


def test_bad_input_is_one_sentence_on_stderr_and_exit_code_2(tmp_path):
    done = run("embed", tmp_path / "nowhere.toml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"error: {tmp_path / 'nowhere.toml'}: no such site file\n"


@pytest.mark.parametrize("command", ["embed", "check"])
def test_a_site_without_its_study_or_manifest_is_one_sentence(federation, command):
    site = site_of(federation)
    with pytest.raises(StudyError, match=r"nothing\.toml: no such study file"):
        invoke(command, site, "--study", federation / "nothing.toml")
    (federation / "elm" / "patients.csv").unlink()
    with pytest.raises(DataError, match=r"patients\.csv"):
        invoke(command, site)


def test_a_folder_without_a_usable_series_is_one_sentence(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no scan")
    with pytest.raises(RunError, match="no usable series among 1 files"):
        invoke("convert", tmp_path / "in", "--out", tmp_path / "out")
    with pytest.raises(InputError, match="nowhere: no such file or folder, expected a folder to convert"):
        invoke("convert", tmp_path / "nowhere", "--out", tmp_path / "out")


def test_convert_says_where_the_report_is(tmp_path):
    write_series(tmp_path / "in")
    result = invoke("convert", tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert str(tmp_path / "out" / "report.json") in result.stdout.replace("\n", "")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


def test_convert_fails_in_the_end_if_a_series_was_refused(tmp_path):
    write_series(tmp_path / "in")
    (tmp_path / "in" / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(RunError, match=r"0 series and 1 unreadable files are not among the volumes"):
        invoke("convert", tmp_path / "in", "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint"], ids=["missing", "empty", "text"])
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path, content):
    file = tmp_path / "resnet_18_23dataset.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        invoke("weights", "import", file, "--into", tmp_path / "weights")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors"))
