"""Reading pickles of built-in containers without running anything in them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import read_bytes


class _GlobalRefusedError(pickle.UnpicklingError):
    """The pickle names a class or function."""


class _ContainersOnly(pickle.Unpickler):
    """Dicts, lists, tuples, sets, texts, bytes, numbers, truth values and None.

    Those have opcodes of their own. Everything else, and all that runs code, needs a class or
    function by name, which comes through ``find_class``.
    """

    def find_class(self, module_name: str, global_name: str, /) -> object:
        raise _GlobalRefusedError(f"{module_name}.{global_name}")


def read_builtin_pickle(path: Path) -> object:
    """Read a pickle that holds nothing but built-in containers and values.

    Texts written by Python 2 come back as bytes; see ``text_of_pickle``.

    Args:
        path: A pickle of any protocol.

    Raises:
        AnnotationError: the file is unreadable or no pickle, or it names a class or function,
            of which none is looked up or called.
    """
    content = read_bytes(path)
    try:
        # "bytes": what Python 2 wrote may be UTF-8 or Latin-1, which is told text by text.
        value: object = _ContainersOnly(io.BytesIO(content), encoding="bytes").load()
    except _GlobalRefusedError as error:
        raise AnnotationError(
            f"{path}: the pickle wants {error}; expected nothing but dicts, lists and texts, "
            "since a pickle that names code can run it"
        ) from error
    except Exception as error:  # damaged pickles raise almost anything
        raise AnnotationError(
            f"{path}: not a usable pickle ({type(error).__name__}: {error}); "
            "expected a dict of captions"
        ) from error
    return value


def text_of_pickle(value: object, place: str) -> str:
    """Take a value of a pickle for a text.

    Bytes are what Python 2 wrote for its ``str``: UTF-8, or else Latin-1.

    Args:
        value: What the pickle holds.
        place: Where it stands, for messages.

    Raises:
        AnnotationError: it is something else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    raise AnnotationError(f"{place}: {type(value).__name__}; expected text")
