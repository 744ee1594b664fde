"""Predictions as DICOM structured reports (TID 1500) in the study of a patient who came as DICOM.

Comprehensive 3D SR by ``highdicom``, which the extra ``dicom-sr`` installs. Reports are preliminary and
unverified. Names that no standard codes have the scheme 99MMARE.
"""

from __future__ import annotations

import io
import uuid
from typing import TYPE_CHECKING, Any, Final

from client.data.read_scan import converted_folder
from client.ingest.files import list_files, looks_like_dicom
from client.ingest.reasons import ScanRefused
from client.ingest.report import chosen_entry
from mmare.errors import InputError, RunError

if TYPE_CHECKING:
    from pydicom import Dataset

    from client.data.scan_list import Scan
    from client.prediction.predict import Predictions
    from sites.config import SiteConfig

__all__ = ["structured_reports"]

_MAKER: Final = "Federated MMARE"
_SERIES: Final = 9900  # high, so that it is listed after the patient's scans
_SCHEME: Final = "99MMARE"
_MEANING: Final = 64  # characters of a code's meaning
_MAY_BE_EMPTY: Final = (  # type 2, which exports often lack
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)


def structured_reports(found: Predictions, site: SiteConfig) -> dict[str, bytes]:
    """Part-10 files by name, one for each patient with a DICOM folder among the scans that were used.

    It refers to the images of the series that the model saw; of several studies, those of the first.

    Raises:
        InputError: If ``highdicom`` is not installed, or nobody came as DICOM.
        RunError: If the series that was used is not known any more.
    """
    try:
        import highdicom  # noqa: F401, PLC0415 - optional, and seconds to import
    except ImportError:
        raise InputError(
            "--dicom-sr needs a further package: pip install 'federated-mmare[dicom-sr]'"
        ) from None
    by_row: dict[int, list[Scan]] = {}
    for scan in found.inputs.scans:
        if scan.path.is_dir():
            by_row.setdefault(scan.row, []).append(scan)
    if not by_row:
        raise InputError("--dicom-sr: no patient came as a folder of DICOM files")
    files = {}
    for row, scans in sorted(by_row.items()):
        report = _report(found, row, _images(site, scans))
        buffer = io.BytesIO()
        report.save_as(buffer, enforce_file_format=True)
        files[f"{report.SOPInstanceUID}.dcm"] = buffer.getvalue()
    return files


def _images(site: SiteConfig, scans: list[Scan]) -> list[Dataset]:
    """Headers of the images of the series used, all of one study."""
    from pydicom import dcmread  # noqa: PLC0415 - as above
    from pydicom.errors import InvalidDicomError  # noqa: PLC0415 - as above

    images: list[Dataset] = []
    for scan in scans:
        entry = chosen_entry(converted_folder(site, scan.path), scan.modality.name)
        if entry is None:
            raise RunError(
                f"data row {scan.row + 1}: which series of {scan.modality.name} was used is no longer in the "
                "cache; remove the cache and predict again"
            )
        for path in list_files(scan.path, lambda _path, _reason: None):
            try:
                header = dcmread(path, stop_before_pixels=True, force=not looks_like_dicom(path))
            except (ScanRefused, OSError, InvalidDicomError):
                continue  # no image that the model saw
            if header.get("SeriesInstanceUID") == entry.series_uid:
                images.append(header)
    images = [each for each in images if each.StudyInstanceUID == images[0].StudyInstanceUID]
    for image in images:
        for keyword in _MAY_BE_EMPTY:
            if keyword not in image:
                setattr(image, keyword, "")
    return images


def _report(found: Predictions, row: int, images: list[Dataset]) -> Any:  # noqa: ANN401 - of an optional package
    from highdicom import UID, sr  # noqa: PLC0415 - as above
    from pydicom.sr.codedict import codes  # noqa: PLC0415 - as above

    study, digest = found.package.study, found.package.digest
    instance = _uid(
        "report", digest, images[0].StudyInstanceUID, found.inputs.patients[row], str(uuid.uuid4())
    )

    def own(value: str, meaning: str) -> Any:  # noqa: ANN401 - as above
        return sr.CodedConcept(value, _SCHEME, meaning[:_MEANING])

    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=UID(_uid("device", digest)), name=study.name[:_MEANING], manufacturer_name=_MAKER
        ),
    )
    call = int(found.judgement.call[row])
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=UID(_uid("tracking", instance)), identifier=study.name),
        finding_type=own("prediction", "Prediction"),
        algorithm_id=sr.AlgorithmIdentification(
            name=study.name,
            version=digest[:12],
            family=codes.cid7162.ArtificialIntelligence,
            manufacturer=_MAKER,
            parameters=[found.package.facts.notice, *found.warnings[row]],
        ),
        measurements=[
            sr.Measurement(
                name=own(f"probability-{label}", f"Probability of {name}"),
                value=round(float(found.judgement.probability[row, label]), 6),
                unit=codes.UCUM.NoUnits,
            )
            for label, name in enumerate(study.classes)
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(
                name=own("call", "Predicted class"), value=own(f"class-{call}", study.classes[call])
            )
        ],
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(image) for image in images],
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=sr.CodedConcept("363679005", "SCT", "Imaging"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    return sr.Comprehensive3DSR(
        evidence=images,
        content=content,
        series_instance_uid=UID(_uid("series", digest, images[0].StudyInstanceUID)),
        series_number=_SERIES,
        sop_instance_uid=UID(instance),
        instance_number=1,
        manufacturer=_MAKER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="Prediction, research use",
    )


def _uid(*parts: str) -> str:
    """A UID of the parts."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(parts)).int}"
