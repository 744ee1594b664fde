import pytest

from client.encoders.files.store import seal_encoder
from tests.client.encoders.files.folders import DRAFTS


@pytest.fixture(scope="session")
def sealed(tmp_path_factory):
    """Gives a sealed encoder by name; made once, to be copied before it is changed."""
    made = {}

    def folder(name):
        if name not in made:
            path = tmp_path_factory.mktemp("encoders") / name.replace("_", "-")
            made[name] = seal_encoder(DRAFTS[name](path)).path
        return made[name]

    return folder


@pytest.fixture
def copied(sealed, tmp_path):
    """As `sealed`, but a copy of one's own."""
    import shutil

    return lambda name: shutil.copytree(sealed(name), tmp_path / "copy" / sealed(name).name)
