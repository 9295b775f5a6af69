"""Reading of LanceDB tables by its native module, without its Python package.

The package takes a second of CPU to import: it loads pandas and hundreds of models of a remote
API that no local gallery calls. Reading needs its compiled module alone, which loads in 50 ms and
is what the package itself reads with. The module is not LanceDB's public interface. So it is used
with releases that the tests have run with, and the package with all others: both read the same.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xclip_deploy.runtime.gallery.arrow_numbers import from_numbers
from xclip_deploy.runtime.gallery.lance_errors import note_use

_KNOWN_RELEASES = ("0.40.",)
"""Releases of LanceDB whose native module this code knows, as beginnings of their numbers."""
_MODULE = "lancedb._lancedb"
_REMOTE_API = "lance_namespace_urllib3_client"
_loading = threading.Lock()


def import_lancedb() -> Any:  # noqa: ANN401 - LanceDB has no useful types
    """Import LanceDB's package, for what writes."""
    note_use()
    with _loading:  # no thread may load the native module meanwhile
        _defer_clients()
        import lancedb

        return lancedb


def _defer_clients() -> None:
    """Have the package of LanceDB's remote API load its clients when a name of it is asked for.

    LanceDB needs the package's models alone. Its clients take half of the time of the import.
    """
    spec = importlib.util.find_spec(_REMOTE_API) if _REMOTE_API not in sys.modules else None
    if spec is None or spec.loader is None:
        return
    package: Any = importlib.util.module_from_spec(spec)
    load, loading, started = spec.loader.exec_module, threading.RLock(), threading.Event()

    def attribute(name: str) -> Any:  # noqa: ANN401
        with loading:
            if not started.is_set():
                started.set()  # its own imports may ask again
                load(package)
        if name in vars(package):
            return vars(package)[name]
        raise AttributeError(f"module {_REMOTE_API!r} has no attribute {name!r}")

    package.__getattr__ = attribute
    sys.modules[_REMOTE_API] = package  # imports of its modules do not load the package itself


def open_for_reading(uri: str, name: str) -> Any:  # noqa: ANN401
    """Open a table at its newest version: a :class:`NativeTable`, or LanceDB's own."""
    module = native_module() if "://" not in uri else None
    if module is None:
        return import_lancedb().connect(uri).open_table(name)

    async def opened() -> Any:  # noqa: ANN401
        return await (await module.connect(uri)).open_table(name)

    return NativeTable(_run(opened))


@functools.cache
def native_module() -> Any:  # noqa: ANN401
    """Load LanceDB's compiled module; None for a release that is not known."""
    package = importlib.util.find_spec("lancedb")  # does not import it
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent
    found = [path.name for path in folder.parent.glob("lancedb-*.dist-info")]
    releases = tuple(f"lancedb-{release}" for release in _KNOWN_RELEASES)
    if len(found) != 1 or not found[0].startswith(releases):
        return None
    with _loading:
        if _MODULE in sys.modules:
            return sys.modules[_MODULE]
        files = sorted(folder.glob("_lancedb*.so")) + sorted(folder.glob("_lancedb*.pyd"))
        spec = importlib.util.spec_from_file_location(_MODULE, files[0]) if files else None
        if spec is None or spec.loader is None:
            return None
        module = importlib.util.module_from_spec(spec)
        # The package finds it here if it is imported later.
        sys.modules[_MODULE] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[_MODULE]
            raise
        return module


class NativeTable:
    """The reading half of LanceDB's ``Table``, with the same names."""

    def __init__(self, table: Any) -> None:  # noqa: ANN401
        """Read an open table of the native module."""
        self._table = table

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return _run(self._table.schema)

    @property
    def version(self) -> int:
        """The version that is read."""
        return int(_run(self._table.version))

    def checkout(self, version: int) -> None:
        """Go to a version."""
        _run(self._table.checkout, version)

    def checkout_latest(self) -> None:
        """Go to the newest version."""
        _run(self._table.checkout_latest)

    def count_rows(self, condition: str | None = None) -> int:
        """Count the rows that meet an SQL condition."""
        return int(_run(self._table.count_rows, condition))

    def list_indices(self) -> list[Any]:
        """List the indices, which have a ``name``."""
        return list(_run(self._table.list_indices))

    def search(
        self,
        vector: Sequence[float] | npt.NDArray[np.floating] | None = None,
        vector_column_name: str | None = None,
    ) -> NativeQuery:
        """Begin a query of all rows, or of those nearest to a vector."""
        query = self._table.query()
        if vector is not None:
            query = query.nearest_to(from_numbers(np.asarray(vector, np.float64)))
            query.column(vector_column_name)
        return NativeQuery(query)

    def take_row_ids(self, rows: list[int]) -> NativeQuery:
        """Begin to read rows by their ids."""
        return NativeQuery(self._table.take_row_ids(rows))


class NativeQuery:
    """A query that is built step by step; each step returns the query itself."""

    def __init__(self, query: Any) -> None:  # noqa: ANN401
        self._query = query

    def where(self, condition: str, *, prefilter: bool = True) -> NativeQuery:
        """Keep the rows that meet an SQL condition, before a vector's neighbours are chosen."""
        self._query.where(condition)
        if not prefilter:
            self._query.postfilter()
        return self

    def select(self, columns: list[str]) -> NativeQuery:
        """Read these columns."""
        self._query.select_columns(columns)
        return self

    def limit(self, limit: int) -> NativeQuery:
        """Return at most this many rows."""
        self._query.limit(limit)
        return self

    def with_row_id(self, with_row_id: bool = True) -> NativeQuery:
        """Return the row ids, too."""
        if with_row_id:
            self._query.with_row_id()
        return self

    def distance_type(self, kind: str) -> NativeQuery:
        """Compare vectors by this distance."""
        self._query.distance_type(kind)
        return self

    def nprobes(self, count: int) -> NativeQuery:
        """Read this many partitions of the index."""
        self._query.nprobes(count)
        return self

    def maximum_nprobes(self, count: int) -> NativeQuery:
        """Read at most this many partitions if there are too few results; 0 for all."""
        self._query.maximum_nprobes(count)
        return self

    def to_arrow(self) -> pa.Table:
        """Run the query and return its rows."""

        async def read() -> pa.Table:
            stream = await self._execute(None)
            return pa.Table.from_batches([batch async for batch in stream], stream.schema)

        return _run(read)

    def to_batches(self, batch_size: int | None = None) -> Iterator[pa.RecordBatch]:
        """Run the query and yield its rows in batches."""
        stream = _run(self._execute, batch_size)
        while (batch := _run(_next_of, stream)) is not None:
            yield batch

    def _execute(self, size: int | None) -> Any:  # noqa: ANN401
        return self._query.execute(max_batch_length=size, timeout=None)


async def _next_of(stream: Any) -> pa.RecordBatch | None:  # noqa: ANN401
    async for batch in stream:
        return batch
    return None


def _run(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
    """Call a function of the native module in the event loop, and wait for its result."""

    async def call() -> Any:  # noqa: ANN401
        return await function(*arguments)

    future = asyncio.run_coroutine_threadsafe(call(), _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """Start an event loop in a thread of its own."""
    note_use()
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="xclip-deploy-lance", daemon=True).start()
    return loop
