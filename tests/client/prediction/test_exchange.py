"""Predictions for other programs, read back by the libraries that hospitals read them with."""

import json
import shutil
import subprocess
import sys
from decimal import Decimal

import pytest
from pydicom import dcmread

from client.prediction.run import predict_site
from client.prediction.written.table_format import Format
from client.privacy.records.audit_log import log_of
from mmare.errors import InputError
from tests.client.data.test_embed import write_series
from tests.client.prediction.conftest import table_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def predicted(scans, folder, text, **more):
    site, package = scans
    return predict_site(package, site, table_of(site, text), folder / "new.csv", Format.CSV, **more)


def test_a_fhir_bundle_holds_device_assessments_and_provenance(scans, tmp_path):
    bundles = pytest.importorskip("fhir.resources.R4B.bundle", reason="the extra fhir is not installed")
    text = "patient_id,t1,t2\nanna,a.nii.gz,\nbea,a.nii.gz,b.nii.gz\n"
    found = predicted(scans, tmp_path, text, fhir=tmp_path / "new.json")
    whole = bundles.Bundle.model_validate_json((tmp_path / "new.json").read_text())
    device, *others = [entry.resource for entry in whole.entry]
    assert device.identifier[0].value == found.package.digest
    urls = {entry.fullUrl for entry in whole.entry}
    logged = [line["prediction"]["input"] for line in log_of(scans[0]).lines()]
    for row, (assessment, provenance) in enumerate(zip(others[::2], others[1::2], strict=True)):
        assert assessment.status == "preliminary"
        assert assessment.subject.identifier.value == found.inputs.patients[row]
        sums = [each.probabilityDecimal for each in assessment.prediction]
        assert sums == [Decimal(f"{value:.6f}") for value in found.judgement.probability[row].tolist()]
        assert "research use, not for clinical decisions" in [note.text for note in assessment.note]
        assert provenance.entity[0].what.identifier.value == logged[row]
        assert {assessment.performer.reference, provenance.target[0].reference} <= urls
    names = [note.text for note in others[2].note]
    assert "examinations: t1, t2" in names
    assert "this combination of modalities was never seen in training" in names


@pytest.mark.slow
def test_a_structured_report_lies_in_the_study_of_the_patient(scans, tmp_path):
    pytest.importorskip("highdicom", reason="the extra dicom-sr is not installed")
    from highdicom.sr import srread

    site, _ = scans
    write_series(site.folder / "export")
    text = "patient_id,t1,t2\nanna,export,\nbea,a.nii.gz,\n"
    found = predicted(scans, tmp_path, text, dicom_sr=tmp_path / "reports")
    (file,) = (tmp_path / "reports").iterdir()  # bea did not come as DICOM
    report, image = srread(file), dcmread(next((site.folder / "export").iterdir()))
    assert report.SOPClassUID.name == "Comprehensive 3D SR Storage"
    assert (report.StudyInstanceUID, report.PatientID) == (image.StudyInstanceUID, image.PatientID)
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    (group,) = report.content.get_image_measurement_groups()
    numbers = [float(each.value) for each in group.get_measurements()]
    assert numbers == pytest.approx(found.judgement.probability[0].tolist(), abs=1e-6)
    (call,) = [each for each in group.get_qualitative_evaluations() if each.name.value == "call"]
    assert call.value.meaning == found.package.study.classes[int(found.judgement.call[0])]
    used = {each.referenced_sop_instance_uid for each in group.source_images}
    assert used == {dcmread(path).SOPInstanceUID for path in (site.folder / "export").iterdir()}
    if dsrdump := shutil.which("dsrdump"):
        done = subprocess.run([dsrdump, str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "research use" in done.stdout


@pytest.mark.parametrize(
    ("option", "package", "extra"),
    [("fhir", "fhir.resources.R4B.bundle", "fhir"), ("dicom_sr", "highdicom", "dicom-sr")],
)
def test_without_the_extra_nothing_is_written(scans, tmp_path, monkeypatch, option, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install 'federated-mmare\[{extra}\]'"):
        predicted(scans, tmp_path, "patient_id,t1,t2\nanna,a.nii.gz,\n", **{option: tmp_path / "there"})
    assert {path.name for path in tmp_path.iterdir()} == {"federation", "model"}
    assert not log_of(scans[0]).path.exists()


def test_nobody_who_came_as_dicom_and_places_that_are_taken_are_refused(scans, tmp_path):
    pytest.importorskip("highdicom", reason="the extra dicom-sr is not installed")
    text = "patient_id,t1,t2\nanna,a.nii.gz,\n"
    with pytest.raises(InputError, match="--dicom-sr: no patient came as a folder of DICOM files"):
        predicted(scans, tmp_path, text, dicom_sr=tmp_path / "reports")
    (tmp_path / "taken.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"taken\.json: is there already"):
        predicted(scans, tmp_path, text, fhir=tmp_path / "taken.json")
    assert not (tmp_path / "new.csv").exists()
