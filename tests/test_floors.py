"""The house has floors: a module imports only from floors below its own, or from its own folder."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "shearling"

# From the ground up. What stands on one floor does not import each other.
FLOORS = [
    {"errors", "machine", "progress", "seeding"},
    {"files"},
    {"config", "pictures"},
    {"models", "data", "quantization"},
    {"training", "formats"},
    {"shearing", "engine"},
    {"experiments", "cluster", "bench", "evaluation"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: Path) -> str:
    first = module.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def targets_of(node: ast.AST) -> list[str]:
    """The dotted names that an import statement may mean: `from a import b` is module a.b, or a name in a."""
    if isinstance(node, ast.ImportFrom):
        assert node.module, "write `from shearling.x import y`: a relative import hides its floor"
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def imported_rooms(source: str) -> Iterator[tuple[int, str]]:
    """The rooms that a module's text imports, wherever the import stands, with their lines."""
    for node in ast.walk(ast.parse(source)):
        for target in targets_of(node):
            package, _, inside = target.partition(".")
            if package == "shearling" and inside.partition(".")[0] in FLOOR_OF:
                yield node.lineno, inside.partition(".")[0]


def offences(source: str, own: str) -> list[str]:
    return [
        f"line {line}: {own} (floor {FLOOR_OF[own]}) imports {room} (floor {FLOOR_OF[room]})"
        for line, room in imported_rooms(source)
        if room != own and FLOOR_OF[room] >= FLOOR_OF[own]
    ]


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_from_floors_below(module):
    own = room_of(module)
    assert own in FLOOR_OF, f"{own} stands on no floor: give it one in FLOORS"
    assert offences(module.read_text(), own) == []


def test_the_package_itself_imports_no_room():
    assert list(imported_rooms((PACKAGE / "__init__.py").read_text())) == []


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("import shearling.training.loop", "models"),
        ("from shearling.data.spec import DataSpec", "models"),
        ("from shearling import cli", "experiments"),
        ("def later():\n    from shearling.bench import train", "experiments"),
    ],
)
def test_the_rule_finds_what_breaks_it(source, own):
    assert offences(source, own)


def imports_of(folder: Path) -> dict[str, set[str]]:
    """For each module of a folder the modules of the package that it imports at its top level."""
    names = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for name, path in names.items():
        targets = {target for node in ast.parse(path.read_text()).body for target in targets_of(node)}
        # A module may be imported by the __init__ of its own folder, which shows the folder's names.
        graph[name] = {target for target in targets & names.keys() if not f"{name}.".startswith(f"{target}.")}
    return graph


def test_no_modules_import_each_other_in_a_circle():
    graph = imports_of(PACKAGE)
    while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in free:
            del graph[name]
    assert graph == {}


HEAVY = ("torch", "transformers", "datasets", "pyarrow", "sentencepiece", "tokenizers", "matplotlib", "scipy")


@pytest.mark.parametrize(
    "code",
    [
        "import shearling.cli",
        "import shearling.training.spec",
        "import shearling.training.schedules",
        "import contextlib, shearling.cli\n"
        "with contextlib.suppress(SystemExit): shearling.cli.main(['compare', '--help'])",
    ],
    ids=["cli", "specs", "schedules", "help"],
)
def test_start_up_loads_nothing_heavy(root, code):
    report = f"{code}\nimport sys\nprint(*(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", report], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.split() == []
