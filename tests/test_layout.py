"""The direction of imports between rooms; docs/design.md says what each room is for."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "prdp"
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli", "api"),
    ("commands",),
    ("train",),
    ("run_parts",),
    ("image_sets", "prompt_writers"),
    ("evaluation",),
    ("experts", "collaboration", "language"),
    ("configuration", "reports"),
    ("learners", "cluster", "checkpoints"),
    ("worlds/mixtures", "worlds/shapes", "worlds"),
    ("prompts", "objectives"),
    ("evidence",),
    ("diffusion", "tracking", "rewards"),
    ("calibration", "config", "types"),
    ("support",),
)
"""From the door down: a room imports from the floors below its own, and from itself."""


def room(module: str) -> str:
    """The room of 'prdp.x.y', or the file itself where it lies in none."""
    parts = module.split(".")[1:]
    return "/".join(parts[:2]) if parts[:1] == ["worlds"] and len(parts) > 1 else (parts or ["__init__"])[0]


def imports() -> dict[tuple[str, str], list[str]]:
    """(room, room) -> the imports of the one from the other, lazy ones too."""
    files = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    found: dict[tuple[str, str], list[str]] = {}
    for module, file in files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "prdp":
                names = [f"{node.module}.{one.name}" for one in node.names]
                targets = [name if name in files else node.module for name in names]
            elif isinstance(node, ast.Import):
                targets = [one.name for one in node.names if one.name.split(".")[0] == "prdp"]
            else:
                continue
            for target in targets:
                if room(target) != room(module) and target != "prdp" and module.count(".") > 0:
                    found.setdefault((room(module), room(target)), []).append(f"{module} imports {target}")
    return found


def test_imports_point_down() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    upward = [
        f"{line} ({there} is not below {here})"
        for (here, there), lines in imports().items()
        for line in lines
        if here not in ("__main__", "__init__") and not floor[here] < floor[there]
    ]
    assert upward == []


def test_every_room_has_its_place() -> None:
    modules = (file.relative_to(PACKAGE.parent).with_suffix("") for file in PACKAGE.rglob("*.py"))
    rooms = {room(".".join(one.parent.parts if one.name == "__init__" else one.parts)) for one in modules}
    named = {name for names in FLOORS for name in names}
    assert rooms - {"__init__", "__main__"} == named
    # 27 of pictures, and one of language models, which share none of their contracts; worlds itself only holds rooms.
    assert len(named - {"worlds"}) <= 28


def test_only_the_cluster_imports_ray() -> None:
    outside = [
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if file.relative_to(PACKAGE).parts[0] != "cluster"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(one.name.split(".")[0] == "ray" for one in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
    ]
    assert outside == []


PRIVATE = {
    "diffusion/compiling.py": "torch",
    "configuration/hydra_internals.py": "hydra",
    "cluster/ray_internals.py": "ray",
    "diffusion/dry_run.py": "torch",
}
"""The files that may use private modules of a library; each has a test that an upgrade would fail."""


def test_private_modules_of_a_library_are_used_in_one_file() -> None:
    outside = []
    for file in PACKAGE.rglob("*.py"):
        allowed = PRIVATE.get(str(file.relative_to(PACKAGE).as_posix()))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{one.name}" for one in node.names]
            elif isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)] if ast.unparse(node).startswith(("ray._", "hydra._")) else []
            else:
                continue
            for name in names:
                top, *rest = name.split(".")
                private = any(part.startswith("_") and not part.startswith("__") for part in rest)
                if top not in ("prdp", "__future__", allowed) and private:
                    outside.append(f"{file.relative_to(PACKAGE)}: {name}")
    assert outside == []


def test_the_fast_tier_is_of_folders_that_are_there_and_starts_no_ray() -> None:
    root = PACKAGE.parent
    makefile = (root / "Makefile").read_text(encoding="utf-8").splitlines()
    [line] = [one for one in makefile if one.startswith("FAST_TESTS")]
    folders = [root / "tests" / word.rstrip(")") for word in line.partition(",")[2].split()]
    assert len(folders) > 5 and all(folder.exists() for folder in folders)
    files = [file for one in folders for file in (one.rglob("*.py") if one.is_dir() else [one])]
    starts = [
        f"{file.relative_to(root)}: {ast.unparse(node)}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(one.name.split(".")[0] == "ray" for one in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
        or (isinstance(node, ast.Call) and ast.unparse(node).startswith("pytest.importorskip('ray"))
    ]
    assert starts == []
