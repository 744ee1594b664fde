#!/usr/bin/env bash
# nibabel 5.4.2, nibabel.nicom.csareader.read: a Siemens CSA header of the first version (it does not begin with
# "SV10") raises UnboundLocalError as soon as its first element has an item. A header of the second version with the
# same elements is read. Seen: "version 1: UnboundLocalError", "version 2: [35]". Fails when either changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nibabel==5.4.2 pydicom==3.0.2
"$folder/venv/bin/python" -W ignore - <<'PY'
import struct

from nibabel.nicom import csareader

ELEMENTS = {"EchoLinePosition": ["1", "22", "333"], "NumberOfImagesInMosaic": ["35"]}


def header(version):
    """Both versions hold the same elements; lengths of the first count from the first element's number of items."""
    first = len(next(iter(ELEMENTS.values())))
    parts = [b"SV10\4\3\2\1" if version == 2 else b"", struct.pack("<II", len(ELEMENTS), 77)]
    for name, items in ELEMENTS.items():
        parts.append(struct.pack("<64si4siii", name.encode(), len(items), b"IS", 6, len(items), 77))
        for item in items:
            length = len(item) + 1
            parts.append(struct.pack("<4i", length + first, length, 77, length))
            parts.append(item.encode().ljust(-(-length // 4) * 4, b"\0"))
    return b"".join(parts)


seen = {}
for version in (1, 2):
    try:
        seen[version] = csareader.read(header(version))["tags"]["NumberOfImagesInMosaic"]["items"]
    except Exception as error:
        seen[version] = type(error).__name__
    print(f"version {version}: {seen[version]}")
assert seen == {1: "UnboundLocalError", 2: [35]}, seen
PY
