"""A private MariaDB and slurmdbd for one cluster, without which sacct has nothing to say."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

# Nothing of it has to survive. Its own tmpdir: mariadbd removes other servers' files at start.
_FAST = (
    *("--innodb-log-file-size=8M", "--innodb-buffer-pool-size=64M", "--innodb-flush-method=nosync"),
    *("--skip-innodb-doublewrite", "--innodb-flush-log-at-trx-commit=0"),
)


def database(folder: Path, sockets: Path, environment: Mapping[str, str]) -> list[str]:
    """Make an empty database in the cluster's ``folder``; what serves it, in the foreground."""
    for part in ("database", "tmp"):
        (folder / part).mkdir()
    common = [
        *("--no-defaults", "--user=root"),
        *(f"--datadir={folder / 'database'}", f"--tmpdir={folder / 'tmp'}", *_FAST),
    ]
    access = ("--auth-root-authentication-method=normal", "--skip-test-db")
    with (folder / "log" / "mariadb-install-db.out").open("wb") as output:
        subprocess.run(
            ["mariadb-install-db", *common, *access],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=True,
        )
    served = (f"--socket={_socket(sockets)}", f"--pid-file={folder / 'run' / 'mariadbd.pid'}")
    return ["mariadbd", *common, *served, "--skip-networking", "--skip-log-bin"]


def database_answers(sockets: Path) -> bool:
    """Whether the database takes connections."""
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        return probe.connect_ex(str(_socket(sockets))) == 0


def daemon_environment(sockets: Path) -> dict[str, str]:
    """Where slurmdbd's library looks for the database on ``localhost``."""
    return {"MYSQL_UNIX_PORT": str(_socket(sockets))}


def write(folder: Path, sockets: Path, port: int) -> None:
    """Write slurmdbd.conf, which slurmdbd wants beside slurm.conf and readable by root only."""
    lines = [
        "AuthType=auth/munge",
        f"AuthInfo=socket={sockets}/munge",
        "DbdHost=localhost",
        "DbdAddr=127.0.0.1",
        f"DbdPort={port}",
        "SlurmUser=root",
        f"LogFile={folder}/log/slurmdbd.log",
        f"PidFile={folder}/run/slurmdbd.pid",
        "DebugLevel=info",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        "StorageUser=root",
        "StorageLoc=slurm_acct",
    ]
    path = folder / "slurmdbd.conf"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write("".join(f"{line}\n" for line in lines))


def listens(port: int) -> bool:
    """Whether a daemon takes connections on ``port`` of this machine."""
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _socket(sockets: Path) -> Path:
    return sockets / "database"
