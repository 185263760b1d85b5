"""How much memory this process can still take."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_memory(root: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes that can be taken without swapping: of the machine, or of a container's limit where that is less.

    Args:
        root: where the control groups of Linux are mounted; version 2, or version 1 with its folder `memory`.
        own: says which group this process is in.
    """
    import psutil

    return min([int(psutil.virtual_memory().available), *_left_in_groups(root, own)])


def _left_in_groups(root: Path, own: Path) -> list[int]:
    """What the limits of this process's control group and of those around it leave; empty without limits."""
    places: list[Path] = []
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers in ("", "memory"):
            base = root / controllers
            inner = PurePosixPath(path.lstrip("/"))
            places += [base / part for part in (inner, *inner.parents)]
    # A container sees its own group as the root, whatever its name outside.
    found = [_left(place) for place in dict.fromkeys([*places, root, root / "memory"])]
    return [left for left in found if left is not None]


def _left(group: Path) -> int | None:
    """The limit less what is used of it and cannot be dropped; None without a limit."""
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, used = _read(group / limit).strip(), _read(group / usage).strip()
        if most.isdigit() and used.isdigit():
            stat = dict(line.split() for line in _read(group / "memory.stat").splitlines() if len(line.split()) == 2)
            return max(0, int(most) - max(0, int(used) - int(stat.get(cache, "0"))))
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
