"""Result lines: whole or dropped, and nobody else's."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import InputError
from simulation.grid.result_log import append_line, cut_torn_line, keep_lines, read_lines

ENTRIES = [
    {"cell": f"{number:012x}", "grid": "g", "settings": {"seed": number}, "seconds": 1.5, "result": {}}
    for number in range(3)
]


def written(path, entries=ENTRIES):
    path.unlink(missing_ok=True)
    for entry in entries:
        append_line(path, entry)
    return path


def test_lines_come_back(tmp_path):
    lines = read_lines(written(tmp_path / "results.jsonl"), "g")
    assert (list(lines.entries), lines.torn) == (ENTRIES, False)
    assert read_lines(tmp_path / "none.jsonl", "g").entries == ()


@given(cut=st.integers(min_value=1, max_value=60), zeros=st.integers(min_value=0, max_value=3))
def test_wherever_the_last_line_is_torn_the_others_stay(tmp_path_factory, cut, zeros):
    path = written(tmp_path_factory.mktemp("torn") / "results.jsonl")
    content = path.read_bytes()
    last = len(content.split(b"\n")[-2]) + 1
    path.write_bytes(content[: -min(cut, last - 1)] + b"\0" * zeros)
    lines = read_lines(path, "g")
    assert (list(lines.entries), lines.torn) == (ENTRIES[:2], True)
    cut_torn_line(path, lines)
    append_line(path, ENTRIES[2])
    assert path.read_bytes() == content


def test_a_torn_line_in_the_middle_is_named(tmp_path):
    path = written(tmp_path / "results.jsonl")
    rows = path.read_text().split("\n")
    path.write_text("\n".join([rows[0], rows[1][:20], rows[2], ""]))
    with pytest.raises(InputError, match=r"results\.jsonl, line 2: not a whole line of JSON"):
        read_lines(path, "g")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param('{"event": "run_started"}\n', "line 1: not a result of a grid", id="journal"),
        pytest.param("dear diary", "line 1: not a result of a grid", id="text without an end"),
        pytest.param("dear diary\n", "line 1: not a whole line of JSON", id="text"),
        pytest.param("[1]\n", "line 1: not a result of a grid", id="list"),
        pytest.param(json.dumps(ENTRIES[0]) + "\ndear", "line 2: not a result", id="foreign end"),
        pytest.param(
            '{"cell": "a", "grid": "h", "settings": {}, "seconds": 1, "result": {}}\n',
            "of the grid 'h', expected 'g'",
            id="other",
        ),
    ],
)
def test_foreign_files_are_refused_and_left_alone(tmp_path, content, words):
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_lines(path, "g")
    assert words in str(caught.value)
    assert path.read_text() == content


def test_non_finite_numbers_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        append_line(tmp_path / "results.jsonl", {"cell": "a", "value": float("nan")})
    assert not (tmp_path / "results.jsonl").exists()


def test_lines_can_be_forgotten(tmp_path):
    path = written(tmp_path / "failures.jsonl")
    keep_lines(path, ENTRIES[1:])
    assert list(read_lines(path, "g").entries) == ENTRIES[1:]
    keep_lines(path, [])
    assert not path.exists()
