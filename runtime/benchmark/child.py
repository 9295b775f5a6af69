"""Start and ask a worker process: the benchmark's side of ``worker.py``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from xclip_deploy import errors
from xclip_deploy.runtime.child_process import describe_end, python_command, start_child


class Child:
    """A worker process with one graph open in one session."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        """Start the process and let it open the session; see ``worker.py``.

        Raises the error of opening the session there, or SessionError where the process died.
        """
        self._what = f"{request['graph']} with {request['options'] or 'default options'}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = start_child(
            python_command("xclip_deploy.runtime.benchmark.worker"),
            self._log,
            text=True,
            encoding="utf-8",
        )
        try:
            self.opened = self._ask(request)
        except BaseException:
            self.close()
            raise

    def run(self, size: int, *, seconds: float, warmup: int) -> dict[str, Any]:
        """Run the graph; see ``worker.py``. Raises SessionError where the process ended."""
        return self._ask({"size": size, "seconds": seconds, "warmup": warmup})

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["kind"], errors.SessionError)
            if kind is errors.MissingExtraError:  # it takes other arguments
                kind = errors.SessionError
            raise kind(answer["error"])
        return answer

    def _death(self) -> errors.SessionError:
        how = describe_end(self._process.wait(), self._log)
        return errors.SessionError(f"the process that ran {self._what} ended ({how})")
