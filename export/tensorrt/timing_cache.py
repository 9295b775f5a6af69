"""Keep the timing cache of ``tensorrt`` in a file, so that builds do not measure again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from xclip_deploy.errors import EngineBuildError
from xclip_deploy.export.tensorrt.flavours import TensorRT
from xclip_deploy.runtime.files import replaced_file, require_regular_file

logger = logging.getLogger(__name__)


class TimingCacheFile:
    """Timing cache of one build, read from ``path`` and written back to it.

    TensorRT refuses a cache of another GPU or version, and a damaged one. That is a warning in the
    log, not an error: the build starts with an empty cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.exists():
                require_regular_file(path, "a timing cache", EngineBuildError)
            self._content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise EngineBuildError(
                f"timing cache {path} cannot be read ({error.strerror}); choose another file"
            ) from error

    def attach(self, library: TensorRT, config: Any) -> None:  # noqa: ANN401 - TensorRT's
        """Let a build use the cache. The configuration keeps it alive."""
        cache = config.create_timing_cache(self._content)
        if cache is not None and config.set_timing_cache(cache, False):
            return
        logger.warning("%s refuses the timing cache %s; it is begun anew", library.name, self.path)
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            raise EngineBuildError(
                f"{library.name} takes no timing cache; leave out --timing-cache"
            )

    def keep(self, config: Any) -> None:  # noqa: ANN401 - TensorRT's
        """Take over the measurements that a build added."""
        cache = config.get_timing_cache()
        content = None if cache is None else cache.serialize()
        if content is not None:
            self._content = bytes(content)

    def write(self) -> None:
        """Write the file, whole or not at all. Raises EngineBuildError."""
        try:
            self.path.absolute().parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(self.path) as partial:
                partial.write_bytes(self._content)
        except OSError as error:
            raise EngineBuildError(
                f"timing cache {self.path} cannot be written ({error.strerror})"
            ) from error
