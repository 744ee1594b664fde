#!/usr/bin/env bash
# openpyxl 3.1.5 writes a Python int through 16 significant digits: 9007199254740993 becomes ...992 in the file and
# 12345678901234567 becomes 1.234567890123457e+16, without a word, so two ids can become one. A file that holds all the
# digits is read exactly by openpyxl, but as a float, and so rounded, by python-calamine 0.9.1. Fails when any changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openpyxl==3.1.5 python-calamine==0.9.1
"$folder/venv/bin/python" - "$folder" <<'PY'
import re
import sys
import zipfile
from pathlib import Path

import openpyxl
import python_calamine

folder = Path(sys.argv[1])
SHEET = "xl/worksheets/sheet1.xml"
book = openpyxl.Workbook()
book.active.append([9007199254740992, 9007199254740993, 12345678901234567])
book.save(folder / "written.xlsx")
with zipfile.ZipFile(folder / "written.xlsx") as written, zipfile.ZipFile(folder / "exact.xlsx", "w") as exact:
    text = written.read(SHEET).decode()
    stored = re.findall(r"<v>(.*?)</v>", text)
    print("openpyxl writes", stored)
    for name in written.namelist():
        content = written.read(name)
        if name == SHEET:  # the second cell with all its digits
            content = re.sub(rb"(<c r=\"B1\"[^>]*><v>)[^<]*", rb"\g<1>9007199254740993", content)
        exact.writestr(name, content)
by_openpyxl = openpyxl.load_workbook(folder / "exact.xlsx").active["B1"].value
by_calamine = python_calamine.load_workbook(folder / "exact.xlsx").get_sheet_by_index(0).to_python()[0][1]
print("of 9007199254740993 openpyxl reads", by_openpyxl, "and calamine", by_calamine)
assert stored == ["9007199254740992", "9007199254740992", "1.234567890123457e+16"], stored
assert by_openpyxl == 9007199254740993
assert isinstance(by_calamine, float)
assert by_calamine == 9007199254740992.0
PY
