"""A PostgreSQL server of the tests' own: in a directory of its own, on a unix socket, under a uid that is not root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

PASSWORD = "p" + os.urandom(8).hex()  # of this run


def binaries() -> Path | None:
    """The newest Debian server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


class Server:
    """Runs until `close`. `socket`: the directory of its socket. `running`: the one of `tests/store`."""

    running: Server

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.directory = Path(tempfile.mkdtemp(prefix="nucleus-postgres-"))
        self.uid = 65_534 if os.geteuid() == 0 else os.geteuid()
        os.chown(self.directory, self.uid, -1)
        self.directory.chmod(0o755)
        self.socket = str(self.directory)
        self._run(
            "initdb", "-D", f"{self.directory}/data", "-U", "nucleus", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"
        )
        hba = "local all guarded scram-sha-256\nlocal all all trust\n"
        Path(f"{self.directory}/data/pg_hba.conf").write_text(hba)
        self.child: subprocess.Popen[bytes] | None = None
        self.start()
        self.sql(f"CREATE ROLE guarded LOGIN PASSWORD '{PASSWORD}'", "GRANT CREATE ON DATABASE postgres TO guarded")

    def url(self, schema: str, options: str = "") -> str:
        return f"postgresql:///postgres?host={self.socket}&user=nucleus&schema={schema}{options}"

    def start(self) -> None:
        with open(self.directory / "log", "ab") as log:
            self.child = subprocess.Popen(
                [
                    # It ends with the tests, however they end.
                    "setpriv", "--pdeathsig", "INT", str(self.programs / "postgres"),
                    "-D", f"{self.directory}/data", "-k", self.socket,
                    "-c", "listen_addresses=", "-c", "max_connections=50", "-c", "shared_buffers=16MB",
                ],
                user=self.uid if os.geteuid() == 0 else None, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd="/",
            )  # fmt: skip
        for _ in range(200):
            done = subprocess.run(
                [str(self.programs / "pg_isready"), "-q", "-h", self.socket], check=False, capture_output=True
            )
            if done.returncode == 0:
                return
            time.sleep(0.05)
        raise AssertionError((self.directory / "log").read_text())

    def stop(self, *, immediately: bool = False) -> None:
        """`immediately`: as a crash (SIGQUIT), else as `pg_ctl stop -m fast`."""
        assert self.child is not None
        self.child.send_signal(3 if immediately else 2)
        self.child.wait(30)
        self.child = None

    def sql(self, *statements: str) -> str:
        """What psql says to it."""
        words = [word for statement in statements for word in ("-c", statement)]
        done = subprocess.run(
            [str(self.programs / "psql"), "-h", self.socket, "-U", "nucleus", "-d", "postgres", "-Atq", *words],
            check=True, capture_output=True, text=True, cwd="/",
        )  # fmt: skip
        return done.stdout.strip()

    def close(self) -> None:
        if self.child is not None:
            self.stop(immediately=True)
        shutil.rmtree(self.directory)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.programs / program), *arguments], check=True, capture_output=True, cwd="/",
            user=self.uid if os.geteuid() == 0 else None,
        )  # fmt: skip


def keep_in(server: Server, directory: Path | str, options: str = "") -> str:
    """Make `directory` a state directory whose ledger is in a new schema of `server`; the schema's name."""
    schema = "t" + os.urandom(6).hex()
    path = Path(directory, "ledger.url")
    path.touch(0o600)
    path.write_text(server.url(schema, options))
    return schema
