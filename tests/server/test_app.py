import pytest

from mmare.errors import StudyError
from server.app import check_subsets
from server.run.request import RunRequest
from tests.federations import tiny_federation, tiny_study


def test_subsets_that_hospitals_would_refuse_at_the_end_are_refused_at_the_start(tmp_path):
    federation = tiny_federation(tmp_path / "federation", sites=("ash",), patients=8)
    check_subsets(RunRequest(federation))
    with pytest.raises(StudyError, match=r"\[privacy\] extra = \[\], expected 'subsets' in it"):
        check_subsets(RunRequest(federation, subsets=True))
    named = tiny_study(privacy={"extra": ["subsets"]})
    federation = tiny_federation(tmp_path / "named", named, sites=("ash",), patients=8)
    check_subsets(RunRequest(federation, subsets=True))
