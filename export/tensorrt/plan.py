"""Build a plan from a parsed network, the one step that takes long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xclip_deploy.errors import EngineBuildError
from xclip_deploy.export.tensorrt.flavours import TensorRT
from xclip_deploy.export.tensorrt.log import failure, log_of
from xclip_deploy.export.tensorrt.network import ParsedNetwork
from xclip_deploy.export.tensorrt.options import configure
from xclip_deploy.export.tensorrt.progress import build_monitored
from xclip_deploy.export.tensorrt.timing_cache import TimingCacheFile
from xclip_deploy.runtime.engine_set import BuildOptions, ShapeRange
from xclip_deploy.runtime.manifest import Graph

_NEARLY = 0.99


def build_plan(
    library: TensorRT,
    graph: Graph,
    parsed: ParsedNetwork,
    profiles: Sequence[dict[str, ShapeRange]],
    options: BuildOptions,
    *,
    cache: TimingCacheFile | None = None,
    report: Callable[[float, str], None] | None = None,
) -> bytes:
    """Build an engine and serialise it.

    ``options``: those that passed ``check_options``. ``report``: called with the fraction done, 0
    to 0.99, and the phase. An exception that it raises ends the build, as Ctrl-C does. Raises
    EngineBuildError with TensorRT's reason.
    """
    builder, network, log = parsed.builder, parsed.network, log_of(library)
    config = builder.create_builder_config()
    if config is None:
        raise failure(library, f"made no builder configuration for {graph.value}", log)
    configure(library, config, options)
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        if profile is None:
            raise failure(library, f"made no optimisation profile for {graph.value}", log)
        for name, shape in ranges.items():
            _set_shape(library, graph, profile, name, shape)
        if config.add_optimization_profile(profile) < 0:
            raise failure(library, f"refused a profile of {graph.value}", log)
    if cache is not None:
        cache.attach(library, config)
    plan = build_monitored(
        library,
        config,
        # The checks that follow take the last hundredth.
        report and (lambda fraction, phase: report(min(fraction, _NEARLY), phase)),
        lambda: builder.build_serialized_network(network, config),
    )
    if plan is None:
        what = f"built no engine of {graph.value}"
        if options.workspace_bytes is not None and "workspace" in str(log.errors).lower():
            what += (
                f" within a workspace of {options.workspace_bytes:,} bytes "
                "(allow more with --workspace, or leave it out)"
            )
        raise failure(library, what, log)
    if cache is not None:
        cache.keep(config)
    return bytes(plan)


def _set_shape(
    library: TensorRT,
    graph: Graph,
    profile: Any,  # noqa: ANN401 - a class of TensorRT's
    name: str,
    shape: ShapeRange,
) -> None:
    # Some versions return a bool. Others return None for success and raise for failure.
    where = f"{library.name} refuses {name} {shape} of {graph.value}"
    try:
        accepted = profile.set_shape(name, shape.min, shape.opt, shape.max)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EngineBuildError(f"{where}: {error}") from error
    if accepted is False:
        raise EngineBuildError(where)
