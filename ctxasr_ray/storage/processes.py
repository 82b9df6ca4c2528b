"""Names a process so that another one on the same host can tell whether it still lives.

A pid alone is not enough: pids are reused, and two containers on one disk have the same ones.
"""

import functools
import hashlib
import os
import socket
from pathlib import Path


@functools.cache
def host() -> str:
    """A host's name in 8 hex digits; hosts, boots and pid namespaces that cannot see each other differ."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id",):
        parts.append(Path(path).read_text() if Path(path).exists() else "")
    parts.append(os.readlink("/proc/self/ns/pid") if Path("/proc/self/ns/pid").is_symlink() else "")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _started(pid: int) -> str | None:
    """Start time of a living process in clock ticks; "0" where there is no /proc; None when it is dead."""
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)
            return "0"
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:
        return "0"
    except (ProcessLookupError, FileNotFoundError):
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie has been killed and only waits to be reaped


def this_process() -> str:
    """The caller's name, `host-pid-start`; safe in file names."""
    return f"{host()}-{os.getpid()}-{_started(os.getpid())}"


def described(process: str) -> str:
    """The name in words, for messages.

    Args:
        process: What `this_process` returned there.
    """
    parts = process.split("-")
    if len(parts) != 3:
        return process
    return f"process {parts[1]} {'of this machine' if parts[0] == host() else f'on another machine, {parts[0]}'}"


def is_dead(process: str) -> bool:
    """True only where it is certain: the process ran on this host and is gone.

    Args:
        process: What `this_process` returned there. A name in another form is of no process here.
    """
    return _is_of_this_host(process) and not _runs(process)


def is_alive(process: str) -> bool:
    """True only where it is certain: the process runs on this host."""
    return _is_of_this_host(process) and _runs(process)


def _is_of_this_host(process: str) -> bool:
    parts = process.split("-")
    return len(parts) == 3 and parts[0] == host() and parts[1].isdigit()


def _runs(process: str) -> bool:
    _, pid, started = process.split("-")
    return _started(int(pid)) == started
