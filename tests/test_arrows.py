"""Imports run one way: no circles, no climbs, between folders and between modules.

Every import counts, wherever it stands: at the top of a module, in a function, under
TYPE_CHECKING, and as the constant name that ``importlib.import_module`` is given. An import of a
module does not count as one of the packages that it lies in; else each package would be a circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

import xclip_deploy

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    not (REPOSITORY / "pyproject.toml").is_file(), reason="these tests read the repository"
)

FOLDERS = ("runtime", "training", "export", "xclip_deploy")
"""The four folders, from the ground up; each may import those before it."""

FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "runtime": (
        (
            "arguments",
            "arrays",
            "child_process",
            "data",
            "failures",
            "files",
            "grains",
            "presentation",
        ),
        (
            "grain_scores",
            "lettering",
            "media",
            "model_config",
            "nvidia_driver",
            "progress",
            "resources",
            "theme",
        ),
        ("metrics", "results", "tokenizer", "video"),
        ("datasets", "decoding", "features", "manifest", "scorer_weights"),
        ("bundle", "cuda", "gallery", "model_inputs"),
        ("engine_set", "moments"),
        ("sessions",),
        ("model_outputs", "valid_frames"),
        ("model_sessions",),
        ("benchmark", "deployed_model"),
        ("resident",),
        ("evaluation", "evidence", "indexing", "search"),
        ("opened",),
        ("cluster", "retriever"),
        ("async_retriever",),
    ),
    "training": (
        ("activation", "config", "datasets", "distributed", "precision"),
        ("run_data", "scorer", "transformer"),
        ("temporal", "text_encoder"),
        ("video_encoder",),
        ("model",),
        ("checkpoints", "optimizer", "torch_matcher"),
        ("evaluation", "initialization", "loss_scaling"),
        ("run_folder", "step"),
        ("trainer",),
    ),
    "export": (
        ("scan_kernels", "video_parts", "weights_file"),
        ("graphs", "reference_inputs"),
        ("parity", "quantization", "triton", "verification"),
        ("bfloat16", "fused_graphs", "tensorrt", "weight_compression"),
        ("exporter",),
    ),
    "xclip_deploy": (
        ("evaluation", "moment_evaluation", "wire"),
        ("client", "service"),
        ("__init__",),
        ("cli",),
    ),
}
"""Modules and packages of each folder, from the ground up. One may import from floors below it and
from its own package. A new module or package needs a place here. All stand on ``errors``."""

GROUND = "xclip_deploy.errors"
NEVER = {"runtime": ("torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "transformers")}
"""Libraries that a folder never imports."""

Graph = Mapping[str, Mapping[str, Sequence[str]]]
"""Each module's imports: the module imported from, and the names or the module itself."""


# Reading imports


def modules(root: Path) -> dict[str, Path]:
    """Find every module of the four folders by its dotted name."""
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if folder != "xclip_deploy":
                parts = ("xclip_deploy", *parts)
            elif len(parts) > 1 and parts[1] in FOLDERS:
                continue  # by way of the links
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def imports_of(file: Path) -> tuple[tuple[str, str], ...]:
    """List every import of a file: the module named, and the name taken from it, if any."""
    return tuple(_imports_of(file))


def _imports_of(file: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            yield from ((str(name), "") for name in names)


def import_graph(root: Path) -> Graph:
    """Read who imports whom among the modules of the four folders."""
    files = modules(root)
    graph: dict[str, dict[str, list[str]]] = {name: {} for name in files}
    for importer, file in files.items():
        for module, name in imports_of(file):
            # `from package import module` imports the module.
            target = f"{module}.{name}" if f"{module}.{name}" in files else module
            if target in files and target != importer:
                graph[importer].setdefault(target, []).append(name or target)
    return graph


def folder_of(module: str) -> str:
    part = module.split(".")[1] if "." in module else ""
    return part if part in FOLDERS else "xclip_deploy"


def unit_of(module: str) -> str:
    """Return the module or package directly within its folder, as FLOORS names it."""
    parts = module.split(".")[1 if folder_of(module) == "xclip_deploy" else 2 :]
    return parts[0] if parts else "__init__"


# Judging them


def circles(graph: Graph) -> list[str]:
    """Describe the imports of every circle of modules (Tarjan's strongly connected parts)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for target in graph[module]:
            if target not in number:
                visit(target)
            if target in stack:
                lowest[module] = min(lowest[module], lowest[target])
        if lowest[module] == number[module]:
            part = set(stack[stack.index(module) :])
            del stack[stack.index(module) :]
            if len(part) > 1:
                found.append(part)

    for module in graph:
        if module not in number:
            visit(module)
    return [describe(graph, module, part) for part in found for module in sorted(part)]


def describe(graph: Graph, module: str, targets: set[str]) -> str:
    taken = {target: names for target, names in graph[module].items() if target in targets}
    return f"{module} imports " + ", ".join(
        f"{target} ({', '.join(names)})" for target, names in taken.items()
    )


def climbs(graph: Graph, floors: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """Describe every import from a floor that is not below the importer's."""
    heights = {
        (folder, unit): (FOLDERS.index(folder), height)
        for folder, levels in floors.items()
        for height, level in enumerate(levels)
        for unit in level
    }
    found: list[str] = []
    for module, imported in graph.items():
        for target in imported:
            if target == GROUND:
                continue
            here = (folder_of(module), unit_of(module))
            there = (folder_of(target), unit_of(target))
            is_below = module != GROUND and heights[there] < heights[here]
            if here != there and not is_below:
                found.append(describe(graph, module, {target}))
    return found


@pytest.fixture(scope="module")
def graph() -> Graph:
    found = import_graph(REPOSITORY)
    assert len(found) > 200, "not everything was looked at"
    return found


def test_there_is_no_circle(graph: Graph) -> None:
    assert circles(graph) == []


def test_every_module_has_a_floor(graph: Graph) -> None:
    placed = [(folder, unit) for folder in FLOORS for level in FLOORS[folder] for unit in level]
    # The faces of the three folders hold nothing.
    faces = {f"xclip_deploy.{folder}" for folder in FOLDERS}
    there = {(folder_of(m), unit_of(m)) for m in graph if m != GROUND and m not in faces}
    assert sorted(placed) == sorted(there)


def test_nothing_climbs(graph: Graph) -> None:
    assert climbs(graph, FLOORS) == []


def test_errors_import_nothing_of_ours(graph: Graph) -> None:
    assert graph[GROUND] == {}


@pytest.mark.parametrize(
    ("folder", "library"), [(folder, name) for folder, names in NEVER.items() for name in names]
)
def test_a_folder_does_without_a_library(folder: str, library: str) -> None:
    for name, file in modules(REPOSITORY).items():
        if folder_of(name) == folder:
            assert library not in {module.split(".")[0] for module, _ in imports_of(file)}, file


def test_public_names_are_not_taken_from_the_face(graph: Graph) -> None:
    """`from xclip_deploy import Bundle` inside the package would go through the lazy table."""
    inner = [name for name in graph if folder_of(name) != "xclip_deploy"]
    assert [name for name in inner if "xclip_deploy" in graph[name]] == []
    assert xclip_deploy.__all__


# The checks can fail


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """Three modules of the runtime in a circle, each import of another kind, and two climbs."""
    files = {
        "runtime/__init__.py": "",
        "runtime/low.py": "if TYPE_CHECKING:\n    from xclip_deploy.runtime.high import Tower\n",
        "runtime/middle.py": "import importlib\n"
        "low = importlib.import_module('xclip_deploy.runtime.low')\n",
        "runtime/high.py": "def climb():\n    from xclip_deploy.runtime import middle\n",
        "runtime/group/__init__.py": "from xclip_deploy.runtime.group.one import two\n",
        "runtime/group/one.py": "import torch\nfrom xclip_deploy.errors import AnyError\n",
        "training/__init__.py": "",
        "training/learn.py": "from xclip_deploy.runtime.high import Tower\n",
        "export/write.py": "def show():\n    from xclip_deploy.cli import main\n",
        "xclip_deploy/__init__.py": "",
        "xclip_deploy/errors.py": "",
        "xclip_deploy/cli.py": "from xclip_deploy.runtime.group import one\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "xclip_deploy" / "runtime").symlink_to(Path("..", "runtime"))
    return tmp_path


def test_a_circle_is_found_with_its_names(made_up: Path) -> None:
    assert circles(import_graph(made_up)) == [
        "xclip_deploy.runtime.high imports xclip_deploy.runtime.middle (middle)",
        "xclip_deploy.runtime.low imports xclip_deploy.runtime.high (Tower)",
        "xclip_deploy.runtime.middle imports xclip_deploy.runtime.low (xclip_deploy.runtime.low)",
    ]


def test_climbs_are_found(made_up: Path) -> None:
    floors = {
        "runtime": (("low",), ("middle", "group"), ("high",)),
        "training": (("learn",),),
        "export": (("write",),),
        "xclip_deploy": (("__init__",), ("cli",)),
    }
    found = import_graph(made_up)
    assert climbs(found, floors) == [
        "xclip_deploy.runtime.low imports xclip_deploy.runtime.high (Tower)",
        "xclip_deploy.export.write imports xclip_deploy.cli (main)",
    ]
    with pytest.raises(KeyError, match="learn"):
        climbs(found, {**floors, "training": ()})
    # Errors, too, must not import from above.
    raised = {GROUND: {"xclip_deploy.runtime.low": ["Low"]}, "xclip_deploy.runtime.low": {}}
    assert len(climbs(raised, floors)) == 1


def test_libraries_are_found(made_up: Path) -> None:
    found = {module for module, _ in imports_of(made_up / "runtime" / "group" / "one.py")}
    assert found == {"torch", "xclip_deploy.errors"}
