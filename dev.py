#!/usr/bin/env python3
"""Tasks of a clone of the repository, which need nothing but Python.

    python3 dev.py demo    train, export, build engines, index and search, in demo-output/
    python3 dev.py test    the tests (further arguments go to pytest: -m slow, -k text)
    python3 dev.py lint    ruff and mypy

The first call makes a virtual environment in .venv and installs the project there. Later calls
use it again until pyproject.toml or constraints.txt changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed-for"
OLDEST_PYTHON = (3, 10)


def main() -> None:
    """Run one task."""
    tasks = {"demo": demo, "test": test, "lint": lint}
    if len(sys.argv) < 2 or sys.argv[1] not in tasks:
        sys.exit((__doc__ or "").strip())
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(f"dev.py needs Python 3.10 or newer, this is {sys.version.split()[0]}")
    install()
    tasks[sys.argv[1]](sys.argv[2:])


def demo(arguments: list[str]) -> None:
    """Run the demo, which writes to demo-output/ below the current directory."""
    run(PYTHON, "-m", "demo", *arguments, environment={"PYTHONPATH": str(ROOT)})


def test(arguments: list[str]) -> None:
    """Run the tests, without the slow ones unless ``-m`` is given."""
    marks = [] if "-m" in arguments else ["-m", "not slow"]
    words = ["-m", "pytest", "-n", "2", "--dist", "worksteal", *marks, *arguments]
    # PyTorch's threads wait by spinning. With two workers of two threads each on two cores,
    # steps on the tests' tiny tensors take ten times as long.
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    # Containers often forbid bytecode. Each worker would then compile every test for 9 s, and
    # each of the hundreds of processes that tests start would compile the project.
    environment = {"OMP_NUM_THREADS": threads, "PYTHONDONTWRITEBYTECODE": ""}
    run(PYTHON, *words, cwd=ROOT, environment=environment)


def lint(arguments: list[str]) -> None:
    """Check style, formatting and types."""
    del arguments
    ruff = PYTHON.with_name("ruff")
    run(ruff, "check", ".", cwd=ROOT)
    run(ruff, "format", "--check", ".", cwd=ROOT)
    run(PYTHON, "-m", "mypy", ".", cwd=ROOT)


def install() -> None:
    """Make the environment and install the project, unless both are up to date."""
    wanted = hashlib.sha256(sys.version.encode() + str(ROOT).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        wanted.update((ROOT / name).read_bytes())
    if STAMP.is_file() and STAMP.read_text() == wanted.hexdigest():
        return
    if not PYTHON.exists():
        make_environment()
    print("installing the project and what it needs into .venv", flush=True)
    pip: list[str | Path] = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install"]
    run(*pip, "-q", "-c", ROOT / "constraints.txt", "-e", f"{ROOT}[dev]")
    STAMP.write_text(wanted.hexdigest())


def make_environment() -> None:
    """Make .venv. Debian and Ubuntu ship Python without venv; install it if permitted."""
    command = [sys.executable, "-m", "venv", str(VENV)]
    if subprocess.run(command, check=False, capture_output=True).returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    apt = shutil.which("apt-get")
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if apt is None or (sudo and shutil.which("sudo") is None):
        sys.exit("Python's venv module is missing; install it, then run this again")
    print("Python's venv module is missing: installing python3-venv", flush=True)
    for words in (["update"], ["install", "-y", "--no-install-recommends", "python3-venv"]):
        if subprocess.run([*sudo, apt, *words], check=False).returncode != 0:
            sys.exit("run: sudo apt-get install python3-venv, then this again")
    run(*command)


def run(
    *command: str | Path,
    cwd: str | Path | None = None,
    environment: dict[str, str] | None = None,
) -> None:
    """Run a command. If it fails, exit with its status."""
    variables = {**os.environ, **(environment or {})}
    words = [str(word) for word in command]
    result = subprocess.run(words, check=False, cwd=cwd, env=variables)
    if result.returncode != 0:
        sys.exit(result.returncode)


if __name__ == "__main__":
    main()
