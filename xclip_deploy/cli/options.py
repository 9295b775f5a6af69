"""Options that several commands share, and the type of their paths."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xclip_deploy.runtime.presentation import did_you_mean
from xclip_deploy.runtime.sessions.registry import backend_names, load_backend, precision_names

if TYPE_CHECKING:
    from xclip_deploy.runtime.sessions import SessionOptions

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class PathArgument(click.Path):
    """A path that can exist. An empty one is refused, as it would mean the current folder."""

    def __init__(self, *, exists: bool = False, dir_okay: bool = True) -> None:
        super().__init__(exists=exists, dir_okay=dir_okay, path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401 - click's
        """Return the path. Raises BadParameter for an empty or too long one."""
        if not os.fspath(value):
            self.fail("found an empty path, expected the name of a file or folder", param, ctx)
        try:
            Path(value).lstat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail(f"{value} is longer than a path can be", param, ctx)
        return super().convert(value, param, ctx)


class Choice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """One of several words. A mistyped one gets the nearest as a suggestion."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401
        """Return the word. Raises BadParameter for one that is no choice."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            nearest = did_you_mean(str(value), map(str, self.choices))
            known = ", ".join(map(str, self.choices))
            self.fail(f"found {str(value)!r:.200}, expected one of {known}{nearest}", param, ctx)


class Group(click.Group):
    """A group of commands. A mistyped one gets the nearest as a suggestion."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of a line. Raises UsageError where there is none."""
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            ctx.fail(f"no command {args[0]!r:.200}{did_you_mean(args[0], known)}")
        return super().resolve_command(ctx, args)


class Command(click.Command):
    """A command that refuses options that exclude each other, such as --exact and --two-stage."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of a command line. Raises UsageError for a contradiction."""
        options = args[: args.index("--")] if "--" in args else args
        for names in alternatives(self).values():
            given = [name for name in names if name in options]
            if len(given) > 1:
                raise click.UsageError(
                    f"{' and '.join(given)} exclude each other; expected one of them", ctx
                )
        return super().parse_args(ctx, args)


def alternatives(command: click.Command) -> dict[str, list[str]]:
    """Return the flags of each parameter that has several with different values."""
    flags: dict[str, list[str]] = {}
    for option in command.params:
        if isinstance(option, click.Option) and option.is_flag and option.name:
            names = [*option.opts[:1], *option.secondary_opts[:1]]
            flags.setdefault(option.name, []).extend(names)
    return {name: names for name, names in flags.items() if len(names) > 1}


bundle_option: Decorator = click.option(
    "--bundle",
    type=PathArgument(),
    default=Path("xclip-bundle"),
    show_default=True,
    help="Take the model from this bundle.",
)
# This is a string: a Path would turn s3://x into s3:/x.
gallery_option: Decorator = click.option(
    "--gallery",
    metavar="PATH",
    default="xclip-gallery",
    show_default=True,
    help="Use the gallery in this directory, or at this LanceDB URI.",
)
reader_option: Decorator = click.option(
    "--reader",
    type=Choice(["pyav", "decord"]),
    default="pyav",
    show_default=True,
    help="Decode videos with this library.",
)
json_option: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output."
)
theme_option: Decorator = click.option(
    "--theme",
    type=Choice(["light", "dark"]),
    default="light",
    show_default=True,
    help="Draw on a light or a dark page.",
)
wide_option: Decorator = click.option(
    "--wide", is_flag=True, help="Show every column, though lines may pass the terminal's width."
)
workers_option: Decorator = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Decode this many videos at the same time.  [default: one per core]",
)
weights_option: Decorator = click.option(
    "--weights",
    metavar="NAME",
    help="Take these weights of a checkpoint that holds several: raw; ema, their moving average; "
    "or the name that they lie under, such as teacher.  [default: raw]",
)
threads_option: Decorator = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Run inference on this many CPU threads.  [default: one per core]",
)


def session_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of sessions to a command, which gets them as ``session``."""

    @wraps(command)
    def with_session(
        *arguments: Any,  # noqa: ANN401 - click's
        device: str,
        device_id: int,
        backend: str,
        precision: str,
        threads: int | None,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        from xclip_deploy.runtime.sessions import SessionOptions

        session = SessionOptions(
            device=device,  # type: ignore[arg-type]  # click.Choice has checked it
            precision=precision,
            threads=threads,
            backend=backend,
            device_id=device_id,
        )
        return command(*arguments, session=session, **options)

    backends = "; ".join(f"{name}: {load_backend(name).summary}" for name in backend_names())
    return _decorated(
        with_session,
        click.option(
            "--device",
            type=Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="Run on this device; auto takes a GPU if one can be used.",
        ),
        click.option(
            "--device-id",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Run on the GPU with this CUDA number.",
        ),
        click.option(
            "--backend",
            type=Choice(["auto", *backend_names()]),
            default="auto",
            show_default=True,
            help=f"Run the model with this backend. {backends}; auto takes engines that fit this "
            "machine, or else ONNX Runtime, or OpenVINO on a CPU where it is faster.",
        ),
        click.option(
            "--precision",
            type=Choice(["auto", *precision_names()]),
            default="auto",
            show_default=True,
            help="Compute in this precision; auto takes FP16 on a GPU. On a CPU it takes "
            "mixed-bf16 where OpenVINO gains by it, or else FP32.",
        ),
        threads_option,
    )


def resident_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a gallery in GPU memory to a command below :func:`session_options`."""

    @wraps(command)
    def with_gallery(
        *arguments: Any,  # noqa: ANN401 - click's
        session: SessionOptions,
        resident_gallery: str,
        gallery_memory_gb: float | None,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        nbytes = None if gallery_memory_gb is None else max(1, int(gallery_memory_gb * 1e9))
        choices: dict[str, Any] = {"auto": "auto", "yes": True, "no": False}
        chosen = replace(
            session, resident_gallery=choices[resident_gallery], gallery_memory_bytes=nbytes
        )
        return command(*arguments, session=chosen, **options)

    return _decorated(
        with_gallery,
        click.option(
            "--resident-gallery",
            type=Choice(["auto", "yes", "no"]),
            default="auto",
            show_default=True,
            help="Keep the gallery in GPU memory between searches; auto does where the model runs "
            "on a GPU and the gallery fits, yes fails where that cannot be had.",
        ),
        click.option(
            "--gallery-memory-gb",
            type=click.FloatRange(min=0, min_open=True),
            metavar="GB",
            help="Take up to so much GPU memory for the gallery.  [default: 80 % of what is free]",
        ),
    )


def _decorated(command: Callable[..., Any], *decorators: Decorator) -> Callable[..., Any]:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command
