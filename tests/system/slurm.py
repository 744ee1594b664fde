"""A stub of Slurm: ``sbatch`` runs a script as a process without network, ``scontrol requeue`` again.

Where this user is root, a job is in a network namespace of its own in which even the loopback is down.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.system.deployment import until

SBATCH = r"""#!/bin/bash
# The last word is the script; words before it are options of Slurm.
set -e
job=$(ls "$STUB_JOBS" | wc -l)
mkdir "$STUB_JOBS/$job"
cp "${@: -1}" "$STUB_JOBS/$job/slurm_script"
name=$(sed -n 's/^#SBATCH --job-name=//p' "${@: -1}")
export SLURM_JOB_ID=$job
setsid "$STUB_PYTHON" -m tests.system.slurm "$STUB_JOBS/$job" "$name.log" < /dev/null > /dev/null 2>&1 &
echo "Submitted batch job $job"
"""
SCONTROL = r"""#!/bin/bash
[ "$1" = requeue ] && touch "$STUB_JOBS/$2/requeue" && sleep 60
"""
ROOT = Path(__file__).parents[2]


class Cluster:
    """A scheduler with nothing else to do.

    Args:
        folder: For its programs and jobs.
        environment: Added to that of the jobs.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.jobs = folder / "jobs"
        self.jobs.mkdir(parents=True)
        for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        stub = {"STUB_JOBS": str(self.jobs), "STUB_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        self._environment = {**os.environ, **environment, **stub, "PATH": path, "OMP_NUM_THREADS": "1"}
        self._folder = folder

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs.iterdir():
            if not (job / "code").exists():
                self.scancel(job)

    def sbatch(self, script: Path) -> Path:
        """Submit; the job's folder."""
        done = subprocess.run(
            ["sbatch", script],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return self.jobs / done.stdout.split()[-1]

    def near_its_limit(self, job: Path) -> None:
        """What ``--signal=B:USR1@…`` does: a signal to the shell of the script."""
        os.kill(int((job / "pid").read_text()), signal.SIGUSR1)

    def scancel(self, job: Path) -> None:
        """End a job: a signal to all its processes."""
        os.killpg(int((job / "pid").read_text()), signal.SIGTERM)
        until((job / "code").exists, f"job {job.name} ends", 60, self.logs)

    def starts(self, job: Path) -> int:
        """How often a job was started."""
        return len((job / "starts").read_text()) if (job / "starts").exists() else 0

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self._folder.glob("*.log"))


def keep(job: Path, log: Path) -> None:
    """Run a job until it ends, as the node's daemon."""
    alone = ["unshare", "--net"] if os.geteuid() == 0 else []
    while True:
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*alone, "bash", job / "slurm_script"], stdout=file, stderr=file, start_new_session=True
            )
        (job / "pid").write_text(str(process.pid))
        with (job / "starts").open("a") as file:
            file.write("x")
        while process.poll() is None and not (job / "requeue").exists():
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        if not (job / "requeue").exists():
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        (job / "requeue").unlink()
    (job / "code").write_text(str(process.returncode))


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
