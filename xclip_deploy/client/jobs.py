"""Jobs of a service: objects that can be awaited, followed and cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing
from typing import Any

from xclip_deploy.client import adding
from xclip_deploy.client.events import ENDED
from xclip_deploy.client.http import LoopHTTP, ThreadHTTP
from xclip_deploy.client.settings import Rules
from xclip_deploy.runtime.indexing import IndexReport
from xclip_deploy.runtime.presentation import brief
from xclip_deploy.runtime.progress import Progress, ProgressFunction, progress_function
from xclip_deploy.wire import JobModel


class _JobState:
    """What both kinds of jobs know: the state that was seen last."""

    def __init__(self, model: JobModel, rules: Rules) -> None:
        self.model = model
        """State that was seen last."""
        self._rules = rules

    @property
    def id(self) -> str:
        """Id of the job."""
        return self.model.id

    @property
    def state(self) -> str:
        """``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``, as seen last."""
        return self.model.state

    @property
    def has_ended(self) -> bool:
        """Whether nothing happens to the job any more."""
        return self.model.state in ENDED

    @property
    def progress(self) -> Progress | None:
        """Progress as seen last; None before the job begins."""
        return adding.progress_of(self.model)

    @property
    def videos(self) -> tuple[str, ...]:
        """Handles of the videos that the job added or found unchanged, 1,000 at most."""
        return tuple(self.model.videos)

    def __repr__(self) -> str:
        return brief(self, id=self.id, state=self.state, title=self.model.title)

    def _see(self, model: JobModel, report: ProgressFunction | None = None) -> JobModel:
        self.model = model
        progress = self.progress
        if report is not None and progress is not None:
            report(progress)
        return model


class Job(_JobState):
    """A job of a :class:`Client`.

    >>> job = client.upload(["dog.mp4"])                 # doctest: +SKIP
    >>> job.wait().indexed                               # doctest: +SKIP
    """

    def __init__(self, model: JobModel, rules: Rules, http: ThreadHTTP) -> None:
        super().__init__(model, rules)
        self._http = http

    def refresh(self) -> Job:
        """Ask for the state now, and return this job."""
        self._see(self._http.run(adding.job_state(self._rules, self.id)))
        return self

    def cancel(self) -> Job:
        """Cancel the job, and return it. One that ended stays as it is."""
        self._see(self._http.run(adding.cancel(self._rules, self.id)))
        return self

    def events(self, timeout_s: float | None = None) -> Iterator[JobModel]:
        """Yield every state of the job until it ends.

        A connection that breaks is made again, and no state is lost. Raises
        ServiceConnectionError after a minute without a connection, and ServiceTimeoutError after
        ``timeout_s``, while the job goes on.
        """
        flow = adding.follow(self._rules, self.id, timeout_s)
        with closing(self._http.follow(flow)) as states:
            for state in states:
                yield self._see(state)

    def wait(
        self, timeout_s: float | None = None, *, progress: bool | ProgressFunction = False
    ) -> IndexReport:
        """Wait until the job ends and return its report, in which files are named.

        ``progress``: True draws a bar on standard error; a function gets each :class:`Progress`.
        Raises the error of a job that failed, and ServiceError for one that was cancelled. Raises
        as :meth:`events` does.
        """
        if not self.has_ended:
            with progress_function(progress) as report:
                flow = adding.follow(self._rules, self.id, timeout_s)
                for state in self._http.follow(flow):
                    self._see(state, report)
        return adding.outcome_of(self.model)


class AsyncJob(_JobState):
    """A job of an :class:`AsyncClient`; ``await job`` waits for its report.

    >>> job = await client.upload(["dog.mp4"])           # doctest: +SKIP
    >>> (await job).indexed                              # doctest: +SKIP
    """

    def __init__(self, model: JobModel, rules: Rules, http: LoopHTTP) -> None:
        super().__init__(model, rules)
        self._http = http

    async def refresh(self) -> AsyncJob:
        """Ask for the state now; see :meth:`Job.refresh`."""
        self._see(await self._http.run(adding.job_state(self._rules, self.id)))
        return self

    async def cancel(self) -> AsyncJob:
        """Cancel the job; see :meth:`Job.cancel`."""
        self._see(await self._http.run(adding.cancel(self._rules, self.id)))
        return self

    async def events(self, timeout_s: float | None = None) -> AsyncIterator[JobModel]:
        """Yield every state of the job until it ends; see :meth:`Job.events`."""
        flow = adding.follow(self._rules, self.id, timeout_s)
        async with aclosing(self._http.follow(flow)) as states:
            async for state in states:
                yield self._see(state)

    async def wait(
        self, timeout_s: float | None = None, *, progress: bool | ProgressFunction = False
    ) -> IndexReport:
        """Wait until the job ends and return its report; see :meth:`Job.wait`."""
        if not self.has_ended:
            with progress_function(progress) as report:
                flow = adding.follow(self._rules, self.id, timeout_s)
                async with aclosing(self._http.follow(flow)) as states:
                    async for state in states:
                        self._see(state, report)
        return adding.outcome_of(self.model)

    def __await__(self) -> Generator[Any, None, IndexReport]:
        return self.wait().__await__()
