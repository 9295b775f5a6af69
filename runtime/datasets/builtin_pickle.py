"""Read pickles of built-in containers without running anything in them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import read_bytes


class _GlobalRefusedError(pickle.UnpicklingError):
    """Error of a pickle that names a class or function."""


class _ContainersOnly(pickle.Unpickler):
    """Unpickler of dicts, lists, tuples, sets, texts, bytes, numbers, truth values and None.

    These have opcodes of their own. Everything else, and all that runs code, needs a class or
    function by name. ``find_class`` looks that name up, and refuses it.
    """

    def find_class(self, module_name: str, global_name: str, /) -> object:
        raise _GlobalRefusedError(f"{module_name}.{global_name}")


def read_builtin_pickle(path: Path) -> object:
    """Read a pickle that holds nothing but built-in containers and values.

    Texts that Python 2 wrote come back as bytes; ``text_of_pickle`` decodes them.

    Args:
        path: A pickle of any protocol.

    Raises:
        AnnotationError: The file is unreadable or no pickle, or it names a class or function.
            None of them is looked up or called.
    """
    content = read_bytes(path)
    try:
        # Python 2 wrote UTF-8 or Latin-1. Only text_of_pickle can tell, for each text.
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
    """Return a value of a pickle as text.

    Bytes come from a ``str`` of Python 2. They are decoded as UTF-8, or else as Latin-1.

    Args:
        value: Value from the pickle.
        place: Its place in the file. Messages name it.

    Raises:
        AnnotationError: The value is neither text nor bytes.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    raise AnnotationError(f"{place}: {type(value).__name__}; expected text")
