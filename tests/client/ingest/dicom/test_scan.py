"""Reading the headers of a folder: the same result in turn and on all cores."""

import pytest

from client.ingest.dicom import scan
from client.ingest.reasons import ScanReason
from tests.client.ingest.phantoms import save, stack, values


@pytest.fixture
def folder(tmp_path):
    save(stack(values(9)), tmp_path / "in")
    (tmp_path / "in" / "0_empty").touch()
    (tmp_path / "in" / "note.txt").write_text("read me first, then the scans")
    return tmp_path / "in"


@pytest.mark.slow
def test_headers_read_on_all_cores_are_those_read_in_turn(folder, monkeypatch):
    in_turn = scan.scan_folder(folder, lambda *_: None)
    monkeypatch.setattr(scan, "_FEWEST_FILES", 2)
    monkeypatch.setattr(scan, "_CHUNK", 2)
    told = []
    assert scan.scan_folder(folder, lambda *state: told.append(state)) == in_turn
    assert [file.reason for file in in_turn[1]] == [ScanReason.EMPTY_FILE, ScanReason.NOT_DICOM]
    assert told[-1] == ("scan", 11, 11)
    assert told == sorted(told)
