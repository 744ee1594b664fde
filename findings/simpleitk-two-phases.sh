#!/usr/bin/env bash
# A DICOM series with two phases of the same three slices (0, 2 and 4 mm, told apart by TemporalPositionIdentifier).
# SimpleITK 2.5.7 names it as one series; reading it stacks all six slices in the order of file names, with a
# spacing of .8 mm, the way from the first to the last over five steps, and no error: one warning on stderr.
# Seen: size (4, 4, 6), spacing 0.8, slices in the order 0 2 4 0 2 4 mm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
cd "$folder"
mkdir series
venv/bin/python - <<'PY'
import numpy as np
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

POSITIONS_MM = (0, 2, 4, 0, 2, 4)
study, series, frame = generate_uid(), generate_uid(), generate_uid()
for at, position in enumerate(POSITIONS_MM):
    each, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    each.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    each.file_meta, each.SOPClassUID, each.Modality = meta, CTImageStorage, "CT"
    each.StudyInstanceUID, each.SeriesInstanceUID, each.FrameOfReferenceUID = study, series, frame
    each.InstanceNumber, each.TemporalPositionIdentifier = at + 1, at // 3 + 1
    each.ImagePositionPatient, each.ImageOrientationPatient = [0, 0, position], [1, 0, 0, 0, 1, 0]
    each.PixelSpacing, each.SliceThickness, each.Rows, each.Columns = [1, 1], 2, 4, 4
    each.SamplesPerPixel, each.PhotometricInterpretation = 1, "MONOCHROME2"
    each.BitsAllocated, each.BitsStored, each.HighBit, each.PixelRepresentation = 16, 16, 15, 1
    each.PixelData = np.full((4, 4), position, np.int16).tobytes()
    each.save_as(f"series/{at}.dcm", enforce_file_format=True)

reader = SimpleITK.ImageSeriesReader
(name,) = reader.GetGDCMSeriesIDs("series")
image = SimpleITK.ReadImage(reader.GetGDCMSeriesFileNames("series", name))
stacked = SimpleITK.GetArrayFromImage(image)[:, 0, 0].tolist()
spacing = round(image.GetSpacing()[2], 6)
print("size", image.GetSize(), "spacing", spacing, "slices at", stacked)
assert (image.GetSize(), spacing, stacked) == ((4, 4, 6), 0.8, list(POSITIONS_MM))
PY
