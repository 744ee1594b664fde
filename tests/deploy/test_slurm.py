"""Scripts and guide for a cluster: what they name exists; `tests.system.test_slurm` runs them."""

import re
import subprocess
from pathlib import Path

import pytest

from sites.config import WorkerConfig, load_site
from tests.deploy.commands import arguments_missing, commands_of, unknown_words
from tests.kits import site_config

FOLDER = Path(__file__).parents[2] / "deploy" / "slurm"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
GUIDE = (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_asks_to_be_queued_again(script):
    text = script.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert options["dependency"] == "singleton"
    assert {"requeue", "time", "cpus-per-task", "mem", "output"} <= set(options)
    before_s = int(re.fullmatch(r"B:USR1@(\d+)", options["signal"])[1])
    assert before_s > WorkerConfig(Path()).grace_s
    assert "' USR1" in text
    assert 'scontrol requeue "$SLURM_JOB_ID"' in text
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (words,) = commands_of("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    assert unknown_words(words) == arguments_missing(words) == []


def test_commands_and_scripts_of_the_guide_exist():
    for words in commands_of(GUIDE):
        assert not unknown_words(words), words
    for block in re.findall(r"^```\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL):
        for words in commands_of(block) if "─" not in block else []:
            assert not arguments_missing(words), words
        for name in re.findall(r"^sbatch (\S+)", block, re.MULTILINE):
            assert (FOLDER / name).is_file()
    assert len(GUIDE.splitlines()) < 100  # a page


def test_the_settings_of_the_guide_are_understood(tmp_path):
    (toml,) = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    site = site_config(tmp_path, more=toml.replace("# group", "group"))
    assert load_site(tmp_path / "site.toml") == site
    assert (site.worker.spool, site.worker.group) == (Path("/shared/mmare-spool"), "mmare-relay")
