"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from xclip_deploy.runtime.sessions.registry import backend_names, load_backend, precision_names

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

bundle_option: Decorator = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    default=Path("xclip-bundle"),
    show_default=True,
    help="The bundle that `xclip-deploy export` wrote.",
)
gallery_option: Decorator = click.option(
    "--gallery",
    type=click.Path(path_type=Path),
    default=Path("xclip-gallery"),
    show_default=True,
    help="Directory of the gallery.",
)
reader_option: Decorator = click.option(
    "--reader",
    type=click.Choice(["pyav", "decord"]),
    default="pyav",
    show_default=True,
    help="Library that decodes video.",
)
json_option: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output."
)
workers_option: Decorator = click.option(
    "--workers", type=click.IntRange(min=1), help="Decoders.  [default: one per core]"
)
threads_option: Decorator = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads for inference.  [default: one per core]",
)


def session_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how sessions are opened; the command gets them as ``session``."""

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
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="Where to run.",
        ),
        click.option(
            "--device-id",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Which GPU, by CUDA's number.",
        ),
        click.option(
            "--backend",
            type=click.Choice(["auto", *backend_names()]),
            default="auto",
            show_default=True,
            help=f"What runs the model. {backends}; auto: engines that fit this machine, else "
            "ONNX Runtime.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", *precision_names()]),
            default="auto",
            show_default=True,
            help="What to compute in; auto: FP16 on a GPU, FP32 on a CPU.",
        ),
        threads_option,
    )


def _decorated(command: Callable[..., Any], *decorators: Decorator) -> Callable[..., Any]:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command
