"""Every name of TensorRT's that the source uses is in the versions that it is for.

``tests/tensorrt_api`` lists what the Python bindings of TensorRT 10, 11 and TensorRT-RTX have:
classes with their members, enums with their values. The names are collected from the source by
following TensorRT's objects from the module through assignments and calls. The bindings have no
type hints, so what a call returns is written down below.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from xclip_deploy.export.tensorrt import options
from xclip_deploy.runtime.sessions.native.library import TENSOR_DTYPES

TESTS = Path(__file__).resolve().parent
SOURCES = sorted(
    path
    for folder in ("export/tensorrt", "runtime/sessions/native")
    for path in (TESTS.parent / folder).rglob("*.py")
)
LEAN = TESTS / "tensorrt_api" / "tensorrt_lean-11.4.0.txt"
"""Of the lean runtime, which runs engines and builds none."""
LISTS = sorted(path for path in (TESTS / "tensorrt_api").glob("*.txt") if path != LEAN)
MODULE = "module"
Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp

# What calls and properties of TensorRT's objects give, where that is an object of its own.
RETURNS = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("Builder", "build_serialized_network"): "IHostMemory",
    ("INetworkDefinition", "get_input"): "ITensor",
    ("INetworkDefinition", "get_output"): "ITensor",
    ("ITensor", "dtype"): "DataType",
    ("OnnxParser", "get_error"): "ParserError",
    ("ParserError", "code"): "ErrorCode",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
    ("ICudaEngine", "create_runtime_config"): "IRuntimeConfig",
    ("ICudaEngine", "get_tensor_dtype"): "DataType",
    ("IRuntimeConfig", "create_runtime_cache"): "IRuntimeCache",
}
# Names that our source gives to TensorRT's objects where they come without a type: parameters
# and attributes that are annotated with Any, ...
NAMES = {
    "builder": "Builder",
    "cache": "IRuntimeCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "module": MODULE,
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "tensor": "ITensor",
    "trt": MODULE,
}
# ... and these wherever they stand, as nothing else of ours is called so.
ALWAYS = ("builder", "context", "module", "network", "parser", "trt")
# Of other libraries and ours, with members that are called like TensorRT's.
OURS = ("onnx.shape_inference.", "HardwareCompatibility.")
# What one flavour or version alone has; the source asks for it only there.
RTX_ONLY = {
    "ComputeCapability": "options.py: --compute-capability is refused for tensorrt",
    "CudaGraphStrategy": "engine.py: _configure_rtx",
    "EngineInvalidityDiagnostics": "engine.py: _check_validity",
    "EngineValidity": "engine.py: _check_validity",
    "IBuilderConfig.num_compute_capabilities": "options.py, as ComputeCapability",
    "IBuilderConfig.set_compute_capability": "options.py, as ComputeCapability",
    "IRuntimeCache": "engine.py: _configure_rtx",
    "IRuntimeConfig.create_runtime_cache": "engine.py: _configure_rtx",
    "IRuntimeConfig.cuda_graph_strategy": "engine.py: _configure_rtx",
    "IRuntimeConfig.set_runtime_cache": "engine.py: _configure_rtx",
    "Runtime.get_engine_validity": "engine.py: _check_validity",
}


@dataclass(frozen=True)
class Api:
    """What one version has."""

    name: str
    members: dict[str, frozenset[str]]
    """Class or enum to its members."""

    def has(self, use: Use) -> bool:
        if use.member is None:
            return use.owner in self.members
        return use.member in self.members.get(use.owner, frozenset())


@dataclass(frozen=True, order=True)
class Use:
    """One name of TensorRT's in the source."""

    owner: str
    member: str | None

    def __str__(self) -> str:
        return self.owner if self.member is None else f"{self.owner}.{self.member}"


def read_api(path: Path) -> Api:
    members = {}
    for line in path.read_text().splitlines():
        match = re.fullmatch(r"(?:ENUM|CLASS) (\w+) \[(.*)\]", line)
        if match:
            members[match[1]] = frozenset(re.findall(r"'(\w+)'", match[2]))
    return Api(path.stem, members)


APIS = [read_api(path) for path in LISTS]
CLASSES = frozenset().union(*(api.members for api in APIS))


class Collector(ast.NodeVisitor):
    """Follows TensorRT's objects through one file."""

    def __init__(self) -> None:
        self.uses: dict[Use, list[int]] = {}
        self.seen: set[tuple[int, int]] = set()
        """Where an attribute of one of TensorRT's objects was taken."""
        self._scopes: list[dict[str, str | None]] = [{}]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope: dict[str, str | None] = {}
        for argument in (*node.args.args, *node.args.kwonlyargs):
            is_untyped = argument.annotation is None or _is_any(argument.annotation)
            scope[argument.arg] = NAMES.get(argument.arg) if is_untyped else None
        self._scopes.append(scope)
        self.generic_visit(node)
        self._scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for one, value in zip(target.elts, node.value.elts, strict=True):
                    self._bind(one, self.type_of(value))
            else:
                self._bind(target, self.type_of(node.value))
            if isinstance(target, ast.Attribute):
                self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        found = None
        if node.value is not None:
            self.visit(node.value)
            found = self.type_of(node.value)
        if found is None and _is_any(node.annotation):
            found = NAMES.get(_last_name(node.target).lstrip("_"))
        self._bind(node.target, found)

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, self.type_of(node.iter))
        self.generic_visit(node)

    def visit_ListComp(self, node: Comprehension) -> None:
        self._comprehension(node)

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp  # noqa: N815

    def _comprehension(self, node: Comprehension) -> None:
        scope: dict[str, str | None] = {}
        self._scopes.append(scope)
        for generator in node.generators:
            self._bind(generator.target, self.type_of(generator.iter))
        self.generic_visit(node)
        self._scopes.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self.type_of(node.value)
        if owner is None or node.attr.startswith("__"):
            return
        self.seen.add((node.lineno, node.col_offset))
        use = Use(node.attr, None) if owner == MODULE else Use(owner, node.attr)
        if owner.endswith("()") or (use.owner in ENUMS and use.member in ("name", "value")):
            return  # a value of an enum
        self.uses.setdefault(use, []).append(node.lineno)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        # What a subclass of TensorRT's overrides is called by these names.
        bases = [base for base in node.bases if self.type_of(base) in CLASSES]
        for base in bases:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and _is_override(method):
                    use = Use(str(self.type_of(base)), method.name)
                    self.uses.setdefault(use, []).append(method.lineno)
        self.generic_visit(node)

    def type_of(self, node: ast.expr) -> str | None:
        """The class of TensorRT's that an expression is of; None for anything else."""
        if isinstance(node, ast.Name):
            for scope in reversed(self._scopes):
                if node.id in scope:
                    return scope[node.id]
            return NAMES.get(node.id) if node.id in ALWAYS else None
        if isinstance(node, ast.Attribute):
            for scope in reversed(self._scopes):
                if ast.unparse(node) in scope:
                    return scope[ast.unparse(node)]
            owner = self.type_of(node.value)
            if owner == MODULE:
                return node.attr if node.attr in CLASSES else None
            if owner is not None:
                return RETURNS.get((owner, node.attr))
            return NAMES.get(node.attr) if node.attr in ALWAYS else None
        if isinstance(node, ast.Call):
            return self.type_of(node.func)
        # A list has the type of what it holds.
        if isinstance(node, ast.List) and node.elts:
            return self.type_of(node.elts[0])
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            self._scopes.append({})
            for generator in node.generators:
                self._bind(generator.target, self.type_of(generator.iter))
            found = self.type_of(node.elt)
            self._scopes.pop()
            return found
        return None

    def _bind(self, target: ast.expr, found: str | None) -> None:
        if isinstance(target, ast.Name):
            if found is None and target.id in ALWAYS:
                found = NAMES[target.id]
            self._scopes[-1][target.id] = found
        elif isinstance(target, ast.Attribute):
            # An attribute of self is known to the class's other methods too.
            self._scopes[0].setdefault(ast.unparse(target), found)
        elif isinstance(target, ast.Tuple):
            for one in target.elts:
                self._bind(one, None)


ENUMS = {
    match[1] for path in LISTS for match in re.finditer(r"^ENUM (\w+) ", path.read_text(), re.M)
}


def _is_any(annotation: ast.expr) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _is_override(method: ast.FunctionDef) -> bool:
    return not method.name.startswith("_") and method.name not in ("clear",)


def collected(folder: str = "") -> dict[Use, list[str]]:
    uses: dict[Use, list[str]] = {}
    for path in SOURCES:
        if folder not in path.as_posix():
            continue
        collector = Collector()
        collector.visit(ast.parse(path.read_text()))
        for use, lines in collector.uses.items():
            uses.setdefault(use, []).extend(f"{path.name}:{line}" for line in lines)
    return uses


USES = collected()
USES |= {
    Use("HardwareCompatibilityLevel", level): ["options.py, by getattr"]
    for level in options._LEVELS.values()
}
USES |= {Use("DataType", dtype): ["network.py, as text"] for dtype in TENSOR_DTYPES}


def test_the_lists_are_of_three_versions() -> None:
    assert [api.name for api in APIS] == [
        "tensorrt-10.16.1",
        "tensorrt-11.4.0",
        "tensorrt_rtx-1.7.1",
    ]
    assert all(len(api.members) > 150 for api in APIS)


def test_the_collector_follows_objects() -> None:
    """So that the tests below cannot pass by finding nothing."""
    source = """
def f(library, config: Any, model: Model):
    trt = library.module
    made = trt.Builder(log)
    network = made.create_network(0)
    errors = [trt.OnnxParser(network, log).get_error(n) for n in range(2)]
    texts = [error.no_such_text() for error in errors]
    for tensor in [network.get_input(0)]:
        tensor.shape
    config.misspelt = trt.BuilderFlag.NO_SUCH_FLAG
    model.config.clear_nothing()
"""
    collector = Collector()
    collector.visit(ast.parse(source))
    assert sorted(str(use) for use in collector.uses) == [
        "Builder",
        "Builder.create_network",
        "BuilderFlag",
        "BuilderFlag.NO_SUCH_FLAG",
        "IBuilderConfig.misspelt",
        "INetworkDefinition.get_input",
        "ITensor.shape",
        "OnnxParser",
        "OnnxParser.get_error",
        "ParserError.no_such_text",
    ]


@pytest.mark.parametrize("use", sorted(USES, key=str), ids=str)
def test_a_name_is_in_every_version_it_is_for(use: Use) -> None:
    missing = [api.name for api in APIS if not api.has(use)]
    is_only_rtx = _is_only_rtx(use)
    expected = [api.name for api in APIS if "rtx" not in api.name] if is_only_rtx else []
    assert missing == expected, f"used at {', '.join(USES[use])}"


def test_the_lean_runtime_has_every_name_that_running_engines_takes() -> None:
    lean = read_api(LEAN)
    uses = {use for use in collected("runtime/sessions/native") if not _is_only_rtx(use)}
    assert {"Runtime", "ICudaEngine.create_execution_context"} <= {str(use) for use in uses}
    assert [str(use) for use in sorted(uses, key=str) if not lean.has(use)] == []


def _is_only_rtx(use: Use) -> bool:
    return str(use) in RTX_ONLY or use.owner in RTX_ONLY


def test_what_only_rtx_has_is_used() -> None:
    """An entry that nothing uses any more would hide the next misuse."""
    used = {str(use) for use in USES} | {use.owner for use in USES}
    assert not set(RTX_ONLY) - used


def _distinctive() -> Iterator[str]:
    """Members that hardly anything else is called: of several words, or an enum's value."""
    for api in APIS:
        for owner, members in api.members.items():
            for member in members:
                if "_" in member.strip("_") and (owner in ENUMS or not member.isupper()):
                    yield member


def test_no_use_escapes_the_collector() -> None:
    """What looks like a name of TensorRT's is one that was collected, or ours."""
    distinctive = set(_distinctive())
    escaped = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        collector = Collector()
        collector.visit(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr not in distinctive:
                continue
            is_ours = ast.unparse(node).startswith(OURS)
            if (node.lineno, node.col_offset) not in collector.seen and not is_ours:
                escaped.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert escaped == []
