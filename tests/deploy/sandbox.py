"""A systemd of its own: private mounts, processes, network, host name and control group on this machine.

The disk below is only read: what is written goes to memory and is gone when it ends. So unit files can be
installed, users made, and services run under all their restrictions, as on a server.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LONGEST_S = 400
ROOT = Path(__file__).parents[2]
SYSTEMD = Path("/lib/systemd/systemd")

# What the inside looks like before systemd starts. $OUT comes back, $PYTHON is this Python's installation.
# What services need is in /opt: they have a /tmp and homes of their own, and this checkout may be there.
_INSIDE = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs $PLACE
mkdir $PLACE/upper $PLACE/work $PLACE/root
mount -t overlay overlay -o lowerdir=/,upperdir=$PLACE/upper,workdir=$PLACE/work $PLACE/root
R=$PLACE/root
mkdir -p $R/out $R/opt/python $R/opt/packages $R/opt/programs $R/opt/source
mount --bind $OUT $R/out
mount --bind $PYTHON $R/opt/python
mount --bind $PACKAGES $R/opt/packages
mount --bind $PROGRAMS $R/opt/programs
mount --bind $SOURCE $R/opt/source
mount -t proc proc $R/proc
mount -t sysfs sysfs $R/sys
mount -t cgroup2 cgroup2 $R/sys/fs/cgroup
mount -t tmpfs tmpfs $R/run
mount -t tmpfs tmpfs $R/tmp
mount -t tmpfs -o mode=755 tmpfs $R/dev
for name in null zero full random urandom tty; do
  touch $R/dev/$name
  mount --bind /dev/$name $R/dev/$name
done
mkdir $R/dev/shm $R/dev/pts
mount -t tmpfs tmpfs $R/dev/shm
mount -t devpts devpts $R/dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx $R/dev/ptmx
ln -s /proc/self/fd $R/dev/fd
ip link set lo up
hostname sandbox
rm -f $R/etc/systemd/system/*.wants/* $R/etc/machine-id
ln -sf /dev/null $R/etc/systemd/system/systemd-networkd-wait-online.service  # two minutes for a cable
cat > $R/etc/systemd/system/sandbox.target <<UNIT
[Unit]
Wants=sandbox.service
Requires=basic.target
After=basic.target
AllowIsolate=yes
UNIT
cat > $R/etc/systemd/system/sandbox.service <<UNIT
[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/bash -c 'bash /out/script.sh; echo \$? > /out/code'
StandardOutput=append:/out/log
StandardError=append:/out/log
ExecStopPost=/bin/systemctl exit
TimeoutStartSec=$LONGEST_S
UNIT
cd $R
mkdir old
pivot_root . old
umount -l /old
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
  $SYSTEMD --system --unit=sandbox.target --log-target=null --show-status=no < /dev/null
"""

# As deploy/*.md leave it after their first step: a virtual environment in /opt/mmare, and deploy beside it.
INSTALLED = r"""
mkdir -p /opt/mmare/bin /opt/mmare/lib/$NAME/site-packages /opt/mmare/share
ln -s /opt/python/bin/$NAME /opt/mmare/bin/python
printf 'home = /opt/python/bin\nversion = %s\n' "$VERSION" > /opt/mmare/pyvenv.cfg
printf '/opt/source\n/opt/packages\n' > /opt/mmare/lib/$NAME/site-packages/mmare.pth
for name in mmare-site mmare-server flower-superlink flower-superexec flower-supernode flwr flwr-clientapp \
            flwr-serverapp; do
  sed '1s|.*|#!/opt/mmare/bin/python|' /opt/programs/$name > /opt/mmare/bin/$name
  chmod 755 /opt/mmare/bin/$name
done
cp -r /opt/source/deploy /opt/mmare/share/
for library in /opt/python/lib/libpython3.*.so.*; do  # where it was built may be closed to services
  [ -e "$library" ] && cp "$library" /usr/lib/$(uname -m)-linux-gnu/ && ldconfig
done
true
"""


def installed() -> str:
    """Lines of a script that make the inside look as if our software were installed in ``/opt/mmare``."""
    values = {"NAME": f"python3.{sys.version_info.minor}", "VERSION": sys.version.split()[0]}
    return "".join(f"{name}={value}\n" for name, value in values.items()) + INSTALLED


def needs_sandbox() -> Path:
    """Where control groups of version 2 are; skips, with the reason, where a systemd of its own cannot be."""
    if os.geteuid() != 0:
        pytest.skip("a systemd of its own needs root")
    missing = [name for name in ("unshare", "pivot_root", "ip", "mount") if shutil.which(name) is None]
    if not SYSTEMD.exists() or missing:
        pytest.skip(f"needs {', '.join([*missing, str(SYSTEMD)])}")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options = line.split()[:4]
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    pytest.skip("no control groups of version 2 that can be written to")


def run_inside(script: str, out: Path) -> tuple[int, str]:
    """Run a script as root under a systemd of its own.

    Args:
        script: Of bash; ``/out`` is the folder ``out``, ``/opt/source`` the checkout.
        out: For what comes back, with a short path of its own.

    Returns:
        Exit code of the script, and what it printed.
    """
    group = needs_sandbox() / f"mmare-{os.getpid()}"
    place = out.parent / f"{out.name}-inside"
    place.mkdir()
    (out / "script.sh").write_text(script)
    (out / "inside.sh").write_text(_INSIDE)
    values = {
        "PLACE": str(place),
        "OUT": str(out),
        "PYTHON": sys.base_prefix,
        "PACKAGES": str(Path(pytest.__file__).parents[1]),
        "PROGRAMS": str(Path(sys.executable).parent),
        "SOURCE": str(ROOT),
        "SYSTEMD": str(SYSTEMD),
        "LONGEST_S": str(LONGEST_S),
    }
    unshare = "unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup"
    group.mkdir()
    try:
        done = subprocess.run(
            ["bash", "-c", f"echo $$ > {group}/cgroup.procs && exec {unshare} bash {out}/inside.sh"],
            env={**os.environ, **values},
            capture_output=True,
            text=True,
            timeout=LONGEST_S + 20,
            check=False,
        )
    finally:
        for folder in sorted(group.rglob("*"), key=lambda path: len(path.parts), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        group.rmdir()
    if not (out / "code").exists():
        said = (out / "log").read_text() if (out / "log").exists() else ""
        pytest.fail(
            f"the systemd of its own ended with {done.returncode}: {done.stderr[-2000:]}\n{said[-2000:]}"
        )
    return int((out / "code").read_text()), (out / "log").read_text()
