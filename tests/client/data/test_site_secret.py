import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from client.data.site_secret import FILE, site_secret, split_seed
from mmare.errors import DataError


def test_a_secret_is_made_once_and_only_its_owner_reads_it(tmp_path):
    first = site_secret(tmp_path)
    assert len(first) == 32
    assert site_secret(tmp_path) == first
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_two_processes_that_begin_together_have_one_secret(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(site_secret, [tmp_path] * 8))) == 1


def test_every_site_splits_in_its_own_way(tmp_path):
    seeds = set()
    for name in ("ash", "birch"):
        (tmp_path / name).mkdir()
        seeds.add(split_seed(tmp_path / name))
        assert split_seed(tmp_path / name) in seeds
    assert len(seeds) == 2
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("text", ["", "abc", "z" * 64])
def test_a_damaged_secret_is_not_replaced(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError, match="expected 64"):
        site_secret(tmp_path)
    assert (tmp_path / FILE).read_text() == text


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="cannot be read or made"):
        site_secret(tmp_path / "nowhere")
