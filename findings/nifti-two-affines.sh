#!/usr/bin/env bash
# A NIfTI file has two places for its position: qform and sform. nibabel 5.4.2 takes the sform wherever its code is
# set. SimpleITK 2.5.7 (ITK) takes it only where its code is 1, scanner; where the code is 2 or 4 (aligned, MNI) and
# a qform is set too, it takes the qform, without a word. So registered files lie in two places. Seen: below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 SimpleITK==2.5.7 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PY'
import nibabel
import numpy as np
import SimpleITK

Q, S = np.diag([1.0, 2.0, 3.0, 1.0]), np.diag([1.0, 2.0, 3.0, 1.0])
Q[:3, 3], S[:3, 3] = (1, 2, 3), (10, 20, 30)
NAMES = {(1, 2, 3): "qform", (10, 20, 30): "sform"}

seen = {}
for codes in ((1, 1), (1, 2), (1, 4), (2, 1), (0, 2), (1, 0)):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), None)
    image.set_qform(Q, codes[0])
    image.set_sform(S, codes[1])
    nibabel.save(image, "scan.nii")
    x, y, z = SimpleITK.ReadImage("scan.nii").GetOrigin()  # x and y the other way: DICOM's axes
    places = [tuple(nibabel.load("scan.nii").affine[:3, 3]), (-x, -y, z)]
    seen[codes] = [NAMES[tuple(round(float(at)) for at in place)] for place in places]
    print("codes of qform and sform %d %d: nibabel %s, SimpleITK %s" % (*codes, *seen[codes]))
assert seen == {
    (1, 1): ["sform", "sform"],
    (1, 2): ["sform", "qform"],
    (1, 4): ["sform", "qform"],
    (2, 1): ["sform", "sform"],
    (0, 2): ["sform", "sform"],
    (1, 0): ["qform", "qform"],
}, seen
PY
