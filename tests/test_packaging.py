from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import re
from collections.abc import Callable
from copy import copy
from importlib import metadata, resources
from pathlib import Path

import pytest

import xclip_deploy
from xclip_deploy import Bundle, errors

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = {
    "xclip_deploy": "xclip_deploy",
    "training": "xclip_deploy.training",
    "export": "xclip_deploy.export",
    "runtime": "xclip_deploy.runtime",
}
pytestmark = pytest.mark.skipif(
    not (REPOSITORY / "pyproject.toml").is_file(), reason="these tests read the repository"
)


# pyproject.toml


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name != "xclip_deploy"])
def test_the_package_leads_to_a_folder(folder: str) -> None:
    """By a relative link, which survives a clone, a copy and an archive."""
    link = REPOSITORY / "xclip_deploy" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..", folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_lies_in_a_package(folder: str) -> None:
    """A folder without __init__.py would be left out of the wheel, silently."""
    for file in (REPOSITORY / folder).rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), file


def test_version() -> None:
    assert metadata.version("xclip-deploy") == xclip_deploy.__version__


def test_data_files_are_found() -> None:
    data = resources.files("xclip_deploy.runtime.data")
    names = {entry.name for entry in data.iterdir()}
    assert {"bpe_simple_vocab_16e6.txt.gz", "LICENSE-CLIP.txt"} <= names
    assert resources.files("xclip_deploy").joinpath("py.typed").is_file()


def test_the_extras_that_messages_name_exist() -> None:
    extras = set(metadata.metadata("xclip-deploy").get_all("Provides-Extra") or ())
    named = set(xclip_deploy._EXTRA_OF_PACKAGE.values())
    for folder in FOLDERS:
        for file in (REPOSITORY / folder).rglob("*.py"):
            named |= set(re.findall(r"xclip-deploy\[([a-z,]+)\]", file.read_text("utf-8")))
            named |= set(
                re.findall(r"MissingExtraError\(\s*[^,]+,\s*\"(\w+)\"", file.read_text("utf-8"))
            )
    assert {"cpu", "gpu", "export"} <= named
    assert {part for name in named for part in name.split(",")} <= extras


# The public names


def test_all_is_sorted_and_complete() -> None:
    names = xclip_deploy.__all__
    assert names == sorted(names)
    assert set(names) == {*xclip_deploy._MODULE_OF, "XclipDeployError"}
    assert len(names) <= 32
    assert dir(xclip_deploy) == names


@pytest.mark.parametrize("name", xclip_deploy.__all__)
def test_a_public_name(name: str) -> None:
    value = getattr(xclip_deploy, name)
    assert value.__module__.startswith("xclip_deploy.")
    assert inspect.getdoc(value), f"{name} has no docstring"


def test_the_documented_submodules_have_the_names() -> None:
    lines = re.findall(
        r"^    (xclip_deploy\.\S+) +([A-Z]\w+(?:, \w+)*)$", xclip_deploy.__doc__ or "", re.M
    )
    assert len(lines) > 20
    for module, names in lines:
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
            assert name not in xclip_deploy.__all__


def test_another_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        xclip_deploy.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    """Names under TYPE_CHECKING are what an editor completes."""
    tree = ast.parse((REPOSITORY / "xclip_deploy" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (f"{node.module}", alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {(f"xclip_deploy.{module}", name) for name, module in xclip_deploy._MODULE_OF.items()}
    assert seen == lazy


# Errors


def tree_of_the_docstring() -> dict[str, tuple[str, int]]:
    """Error name to its parent and exit status, as the docstring draws them."""
    found: dict[str, tuple[str, int]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"    ([│├└─\s]*)(\w+Error)\s*(\d+)?", line)
        if not drawn:
            continue
        depth = len(drawn[1]) // 4
        path = [*path[:depth], drawn[2]]
        parent = path[-2] if depth else "Exception"
        status = int(drawn[3]) if drawn[3] else found[parent][1]
        found[drawn[2]] = (parent, status)
    return found


def error_classes() -> dict[str, type[BaseException]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }


def test_the_tree_of_errors_is_as_drawn() -> None:
    drawn, classes = tree_of_the_docstring(), error_classes()
    assert set(drawn) == set(classes)
    assert len(drawn) > 20
    for name, (parent, status) in drawn.items():
        found = classes[name]
        assert issubclass(found, errors.XclipDeployError)
        assert found.__bases__[0].__name__ == parent, name
        assert found.exit_code == status, name
        assert found.__doc__


def test_errors_are_what_python_programs_expect_too() -> None:
    assert issubclass(errors.InvalidArgumentError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)


def test_a_missing_extra_names_its_command() -> None:
    error = errors.MissingExtraError("torch", "export", "export_bundle")
    assert str(error) == (
        "export_bundle needs torch, which is not installed; run: pip install 'xclip-deploy[export]'"
    )
    assert (error.package, error.extra) == ("torch", "export")


@pytest.mark.parametrize("name", sorted(error_classes()))
@pytest.mark.parametrize("duplicate", [lambda error: pickle.loads(pickle.dumps(error)), copy])
def test_errors_survive_pickling(
    name: str, duplicate: Callable[[BaseException], BaseException]
) -> None:
    made: dict[str, BaseException] = {
        "MissingExtraError": errors.MissingExtraError("torch", "export", "export_bundle"),
        "MissingVideosError": errors.MissingVideosError("two are missing", ["a", "b"]),
    }
    error = made.get(name) or error_classes()[name]("what was found; what was expected")
    error.note = "an attribute"  # type: ignore[attr-defined]
    again = duplicate(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.args == error.args


def test_what_errors_carry_survives_pickling(bundle: Bundle) -> None:
    error = errors.ParityError("is off", bundle.manifest.parity)
    assert error.records
    assert pickle.loads(pickle.dumps(error)).records == error.records


# Modules


def test_every_module_can_be_imported() -> None:
    pytest.importorskip("torch")
    for folder, package in FOLDERS.items():
        for file in (REPOSITORY / folder).rglob("*.py"):
            parts = file.relative_to(REPOSITORY / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            importlib.import_module(".".join((package, *parts)))
