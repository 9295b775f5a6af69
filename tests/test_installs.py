"""The package as a wheel, an sdist and an editable install, in a clone and elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

OncePerRun = Callable[[str, Callable[[Path], object]], Path]
REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("xclip_deploy", "training", "export", "runtime")
pytestmark = pytest.mark.skipif(
    not (REPOSITORY / "pyproject.toml").is_file(), reason="these tests read the repository"
)

LOOK_AROUND = """
import sys, tempfile
from pathlib import Path

import xclip_deploy
from xclip_deploy import Retriever
from xclip_deploy.runtime.child_process import start_child

# Each of the four folders is there, and from one place.
from xclip_deploy import cli, errors
from xclip_deploy.runtime import retriever
import importlib.util
for name in ("training", "export"):
    assert importlib.util.find_spec(f"xclip_deploy.{name}.__init__") is not None, name
where = Path(xclip_deploy.__file__).parent
assert Path(retriever.__file__).parent == where / "runtime", retriever.__file__

# A process of our own uses the same package.
command = (sys.executable, "-c", "import xclip_deploy; print(xclip_deploy.__file__)")
with tempfile.TemporaryFile() as log:
    child = start_child(command, log)
    said = child.communicate()[0].decode().strip()
assert said == xclip_deploy.__file__, said
print(where)
"""


def run(*command: str | Path, cwd: Path) -> str:
    words = [str(word) for word in command]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def builds(once_per_run: OncePerRun) -> Path:
    """A clone, and what is built from it: ``clone/``, and a wheel and an sdist beside it."""

    def build(folder: Path) -> None:
        clone = folder / "clone"
        clone.mkdir()
        for name in FOLDERS:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, clone / name, symlinks=True, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPOSITORY / name, clone)
        code = (
            "from setuptools import build_meta; import sys; folder = sys.argv[1]; "
            "build_meta.build_wheel(folder); build_meta.build_sdist(folder)"
        )
        run(sys.executable, "-c", code, folder, cwd=clone)
        shutil.rmtree(clone / "build", ignore_errors=True)

    return once_per_run("builds", build)


def install(kind: str, builds: Path, folder: Path) -> tuple[Path, Path]:
    """Make an environment with the package; its Python, and a clone of its own."""
    clone = folder / "clone"
    shutil.copytree(builds / "clone", clone, symlinks=True)
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=folder)
    python = venv / "bin" / "python"
    # What the package needs is installed here already.
    places = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder)
    Path(places, "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (wheel,), (sdist,) = builds.glob("*.whl"), builds.glob("*.tar.gz")
    what = {"wheel": (wheel,), "sdist": (sdist,), "editable": ("-e", clone)}[kind]
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    options = ("-q", "--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed")
    run(*pip, "install", *options, *what, cwd=folder)
    return python, clone


@pytest.mark.parametrize(
    "kind",
    # The tests themselves run on an editable install, and a wheel is made on the way of an sdist.
    ["wheel", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sdist", "editable"))],
)
def test_an_install(kind: str, builds: Path, tmp_path: Path) -> None:
    python, clone = install(kind, builds, tmp_path)
    in_clone = run(python, "-c", LOOK_AROUND, cwd=clone)
    elsewhere = run(python, "-c", LOOK_AROUND, cwd=tmp_path)
    assert in_clone == str(clone / "xclip_deploy"), "the clone's own package is used in it"
    assert (elsewhere == in_clone) == (kind == "editable")
    for place in (clone, tmp_path):
        program = python.with_name("xclip-deploy")
        assert run(program, "--version", cwd=place).startswith("xclip-deploy, version ")


def test_a_wheel_holds_files_and_one_name(builds: Path) -> None:
    (wheel,) = builds.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"xclip_deploy"}
    modules = {name for name in names if name.endswith(".py")}
    expected = {
        f"xclip_deploy/{'' if folder == 'xclip_deploy' else folder + '/'}"
        f"{file.relative_to(REPOSITORY / folder).as_posix()}"
        for folder in FOLDERS
        for file in (REPOSITORY / folder).rglob("*.py")
    }
    assert modules == expected
    assert "xclip_deploy/runtime/data/bpe_simple_vocab_16e6.txt.gz" in names
    assert "xclip_deploy/py.typed" in names
