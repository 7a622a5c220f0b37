"""README's first command on a bare Debian 12: minbase, python3, make, git, ca-certificates; root, cloned into /root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ENTER = """
set -e
R=$1
mount --bind $R $R
mount -t proc proc $R/proc
mount -t sysfs sys $R/sys
mount --rbind /sys/fs/cgroup $R/sys/fs/cgroup
mount --rbind /dev $R/dev
mount -t tmpfs tmpfs $R/run
mount -t tmpfs tmpfs $R/tmp
mkdir -p $R/old
cd $R
pivot_root . old
umount -l /old
shift
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
"""


@pytest.fixture(scope="module")
def root() -> Path:
    """The new system's root."""
    made = Path(os.environ["NUCLEUS_BARE"]) / "root"
    if not (made / "etc/debian_version").exists():
        shutil.rmtree(made, ignore_errors=True)
        mirrors = [
            f"deb http://deb.debian.org/{name} main"
            for name in ("debian bookworm", "debian-security bookworm-security")
        ]
        subprocess.run(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                "--include=python3,make,git,ca-certificates",
                "bookworm",
                made,
                *mirrors,
            ],
            check=True,
        )
    for name in ("etc/resolv.conf", "etc/pip.conf"):  # how this machine gets at the network
        if Path("/", name).exists():
            shutil.copy(Path("/", name), made / name)
    for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
        shutil.copy(certificate, made / "usr/local/share/ca-certificates")
    return made


def run(root: Path, command: str) -> subprocess.CompletedProcess[str]:
    argv = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "bash",
        "-c",
        ENTER,
        "enter",
        str(root),
    ]
    return subprocess.run([*argv, "bash", "-c", command], capture_output=True, text=True, timeout=1_200, check=False)


@pytest.mark.timeout(1_500)
def test_the_first_command_sets_everything_up(root: Path) -> None:
    home = root / "root" / "nucleus"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", home], input=archive, check=True)
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    certificates = f"update-ca-certificates >/dev/null 2>&1; export PIP_CERT={bundle} SSL_CERT_FILE={bundle}"
    done = run(root, f"{certificates}; cd ~/nucleus && make demo")
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-2_000:]
    assert "57 attempts, 0 got through." in done.stdout
    assert (root / "root").stat().st_mode & 0o777 == 0o700  # as Debian has it
    done = run(root, "cd ~/nucleus && .venv/bin/pytest tests/pod tests/integration/test_exec.py 2>&1 | tail -5")
    assert " passed" in done.stdout, done
    assert " failed" not in done.stdout
