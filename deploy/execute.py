"""Execute the steps of a Dockerfile in a clean root, where no Docker engine runs.

    sudo python3 deploy/execute.py deploy/Dockerfile.cpu --python /usr/bin/python3.12 \
        --bundle xclip-bundle

It stands in for `docker build` and `docker run` in a test of the steps, and makes no image. The
base image is replaced by this machine's /usr, read-only, with the given Python; so steps that
install packages of the base's distribution are skipped, and said to be. Each stage has a root of
its own, an environment of its own, and the files that .dockerignore lets through. At the end the
service starts as the image's user, with a read-only root, one data folder and a network of its own,
and its health check runs until it succeeds.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

SKIPPED = re.compile(r"\bapt-get\b")
SHARED = ("usr", "bin", "sbin", "lib", "lib64")
MOUNTED = ("proc", "dev", "tmp")
TOKEN = "a-token-for-the-test-of-the-image"  # noqa: S105 - of a service that ends with the test


@dataclass
class Stage:
    """One stage of a build: a root folder, and what later steps need of earlier ones."""

    root: Path
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction of a Dockerfile with its argument, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    for line in joined.splitlines():
        if line.strip():
            name, _, argument = line.strip().partition(" ")
            yield name.upper(), argument.strip()


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Tell whether .dockerignore leaves a file out; the last pattern that fits decides."""
    ignored = False
    parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    for pattern in patterns:
        body = pattern.removeprefix("!").strip("/")
        globs = [body, body.removeprefix("**/")]
        if any(fnmatch.fnmatch(parent, each) for parent in parents for each in globs):
            ignored = not pattern.startswith("!")
    return ignored


def copy_context(context: Path, target: Path) -> int:
    """Copy what .dockerignore lets through, links as links; return the number of files."""
    lines = (context / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    count = 0
    for folder, names, files in os.walk(context):
        here = Path(folder).relative_to(context)
        names[:] = [name for name in names if name != ".git"]
        links = [name for name in names if (Path(folder) / name).is_symlink()]
        for name in [*files, *links]:
            path = here / name
            if not is_ignored(path.as_posix(), patterns):
                (target / here).mkdir(parents=True, exist_ok=True)
                shutil.copy2(context / path, target / path, follow_symlinks=False)
                count += 1
    return count


class Machine:
    """The roots of all stages, below one folder."""

    def __init__(self, folder: Path, context: Path, python: Path) -> None:
        self.folder = folder
        self.context = context
        self.python = python
        self.stages: list[Stage] = []
        self.skipped: list[str] = []

    def begin(self, argument: str) -> Stage:
        """Make the root of a stage."""
        base, _, name = argument.partition(" AS ")
        if ":" not in base or base.endswith(":latest"):
            sys.exit(f"FROM {base}: expected a base that is pinned by a tag")
        stage = Stage(self.folder / f"root-{len(self.stages)}", name or "final")
        for each in (*SHARED, *MOUNTED, "opt", "run", "var", "bundle"):
            (stage.root / each).mkdir(parents=True, exist_ok=True)
        shutil.copytree("/etc", stage.root / "etc", symlinks=True, dirs_exist_ok=True)
        stage.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/root",
        }
        self.stages.append(stage)
        return stage

    def inside(
        self, stage: Stage, command: list[str], *, runs_service: bool = False, bundle: Path | None
    ) -> subprocess.Popen[bytes]:
        """Start a command in a stage's root, in mount and network namespaces of its own."""
        root = stage.root
        prefix = self.python.resolve().parent.parent
        mounts = ["set -e", "mount --make-rprivate /"]
        for name in SHARED:
            if Path("/", name).is_dir():
                mounts.append(f"mount --bind -o ro /{name} {root}/{name}")
                mounts.append(f"mount -o remount,bind,ro {root}/{name}")
        mounts += [
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs -o mode=1777,size=1g tmpfs {root}/tmp",
            # Python stands where the base image has it. Its libraries stay where they are.
            f"mount -t tmpfs tmpfs {root}/usr/local",
            f"mkdir -p {root}/usr/local/bin {root}{prefix}",
            f"mount --bind -o ro {prefix} {root}{prefix}",
            f"ln -s {prefix}/bin/{self.python.name} {root}/usr/local/bin/python",
            f"ln -s {prefix}/bin/{self.python.name} {root}/usr/local/bin/python3",
        ]
        if bundle is not None:
            mounts.append(f"mount --bind -o ro {bundle.resolve()} {root}/bundle")
        if runs_service:
            mounts += [
                f"mount --rbind {root} {root}.read-only",
                f"mount -o remount,bind,ro {root}.read-only",
                f"mount --bind {root}/data {root}.read-only/data",
                "ip link set lo up",
            ]
            (root.parent / f"{root.name}.read-only").mkdir(exist_ok=True)
            root = Path(f"{root}.read-only")
        mounts.append(f'exec chroot --userspec={stage.user} {root} /usr/bin/env -i "$@"')
        pairs = [f"{name}={value}" for name, value in stage.environment.items()]
        go = ["/bin/sh", "-c", f'cd {stage.folder} && exec "$@"', "sh", *command]
        spaces = ["--mount", "--pid", "--fork", "--kill-child"]
        spaces += ["--net"] if runs_service else []
        words = ["unshare", *spaces, "/bin/sh", "-c", "\n".join(mounts), "sh", *pairs, *go]
        return subprocess.Popen(words)

    def run(self, stage: Stage, command: str) -> None:
        """Execute a RUN step."""
        print(f"[{stage.name}] RUN {command[:100]}", flush=True)
        if SKIPPED.search(command):
            self.skipped.append(command)
            print("    skipped: it installs packages of the base's distribution", flush=True)
            return
        started = time.monotonic()
        process = self.inside(stage, ["/bin/sh", "-ec", command], bundle=None)
        if process.wait() != 0:
            sys.exit(f"RUN failed with status {process.returncode}: {command}")
        print(f"    done in {time.monotonic() - started:.0f} s", flush=True)

    def copy(self, stage: Stage, argument: str) -> None:
        """Execute a COPY step, from the context or an earlier stage."""
        *words, source, target = argument.split()
        place = stage.root / os.path.normpath(Path(stage.folder, target)).lstrip("/")
        if words:
            name = words[0].removeprefix("--from=")
            earlier = next(each for each in self.stages if each.name == name)
            shutil.copytree(earlier.root / source.lstrip("/"), place, symlinks=True)
        elif source == ".":
            count = copy_context(self.context, place)
            print(f"[{stage.name}] COPY . : {count} files", flush=True)
        else:
            allowed = self.folder / "context"
            copy_context(self.context, allowed)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(allowed / source, place)

    def build(self, text: str) -> Stage:
        """Execute all instructions; return the last stage."""
        stage: Stage | None = None
        for name, argument in instructions(text):
            if name == "FROM":
                stage = self.begin(argument)
                continue
            assert stage is not None, "an instruction before FROM"
            if name == "RUN":
                self.run(stage, argument)
            elif name == "COPY":
                self.copy(stage, argument)
            elif name == "ENV":
                known = dict(stage.environment)
                for key, value in re.findall(r"(\w+)=(\S+)", argument):
                    stage.environment[key] = Template(value).substitute(known)
            elif name == "WORKDIR":
                stage.folder = argument
                (stage.root / argument.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif name == "USER":
                stage.user = argument
            elif name == "ENTRYPOINT":
                stage.command = json.loads(argument)
            elif name == "HEALTHCHECK":
                stage.health = json.loads(argument.partition("CMD")[2])
            elif name not in ("VOLUME", "EXPOSE", "STOPSIGNAL"):
                sys.exit(f"{name}: this script does not know the instruction")
        assert stage is not None, "no FROM"
        return stage


def serve(machine: Machine, stage: Stage, bundle: Path) -> None:
    """Run the image's command and its health check, which must succeed within two minutes."""
    stage.environment["XCLIP_DEPLOY_TOKEN"] = TOKEN
    # Both run in one shell, since the network is theirs alone.
    health = " ".join(stage.health)
    script = (
        '"$@" & service=$!\n'
        f"for _ in $(seq 120); do {health} && ready=yes && break; kill -0 $service || exit 1; "
        "sleep 1; done\n"
        '[ "$ready" = yes ] || exit 1\n'
        "touch /opt/written 2>/dev/null && echo 'the root can be written' && exit 1\n"
        "touch /data/written || exit 1\n"
        '[ "$(id -u)" != 0 ] || exit 1\n'
        "kill -TERM $service && wait $service\n"
    )
    command = ["/bin/sh", "-c", script, "sh", *stage.command]
    process = machine.inside(stage, command, runs_service=True, bundle=bundle)
    if process.wait() != 0:
        sys.exit(f"the service did not get ready, or not end well ({process.returncode})")
    written = sorted(path.name for path in (stage.root / "data").iterdir())
    print(f"the service got ready and ended; /data holds {', '.join(written)}", flush=True)


def main() -> None:
    """Execute the steps of the Dockerfile that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="the base image's Python")
    parser.add_argument("--bundle", type=Path, help="serve this bundle at the end")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: it makes mount namespaces; nothing outside them is changed")
    context = Path(__file__).resolve().parents[1]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="image-")))
        folder.chmod(0o755)
        machine = Machine(folder, context, given.python)
        stage = machine.build(given.dockerfile.read_text(encoding="utf-8"))
        if given.bundle is not None:
            serve(machine, stage, given.bundle)
    print(f"done, {len(machine.skipped)} steps skipped", flush=True)


if __name__ == "__main__":
    main()
