"""Calls of evidence: explanations, and their pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from xclip_deploy.client.bodies import JsonBody
from xclip_deploy.client.exchange import Flow, Request, Work, address_of, exchange
from xclip_deploy.client.reading import bytes_of, model_of
from xclip_deploy.client.settings import Rules
from xclip_deploy.client.verbs import made
from xclip_deploy.client.videos import name_of
from xclip_deploy.errors import InvalidArgumentError, ServiceError
from xclip_deploy.runtime.arguments import PathName, as_instance, as_path, as_text
from xclip_deploy.runtime.evidence import Contrast, Explanation, Hit
from xclip_deploy.runtime.files import replaced_file
from xclip_deploy.runtime.results import SearchResult
from xclip_deploy.wire import EvidenceModel, ExplainRequest


def explain(rules: Rules, query: str, a: Hit, b: Hit | None) -> Flow[Explanation | Contrast]:
    """Ask why a video has its score, or why it ranks above another."""
    names = {"hit": _hit_name("a", a), "other": None if b is None else _hit_name("b", b)}
    model = yield from _explain(rules, made(ExplainRequest, query=as_text("query", query), **names))
    found: Explanation | Contrast
    if model.contrast is not None and b is not None:
        found = model.contrast.contrast()
    elif model.explanation is not None and b is None:
        found = model.explanation.explanation()
    else:
        raise ServiceError("the service answered another question than was asked")
    return found


def plot(rules: Rules, explanation: Explanation | Contrast, path: PathName) -> Flow[None]:
    """Let the service draw an explanation, and write the PNG.

    The service explains anew, from the gallery as it is. Raises ServiceError if the scores are
    other ones by now, since the picture would not be that of ``explanation``.
    """
    kinds = (Explanation, Contrast)
    as_instance("explanation", explanation, kinds, "what client.explain gives")
    target = as_path("path", path)
    parts = explanation.explanations if isinstance(explanation, Contrast) else (explanation,)
    names = [{"video": part.video_id, "segment": part.segment} for part in parts]
    asked = made(
        ExplainRequest,
        query=explanation.query,
        hit=names[0],
        other=names[1] if len(names) > 1 else None,
    )
    body = JsonBody.of(asked)
    request = Request("POST", address_of("explain.png"), body=body)
    # The gallery is asked after the picture: an explanation that is the same then was so before.
    _, content = yield from exchange(request, rules, bytes_of(rules, "image/png"))
    model = yield from _explain(rules, asked)
    contrast = model.contrast
    now = [model.explanation] if contrast is None else [contrast.first, contrast.second]
    if [part.score for part in parts] != [None if part is None else part.score for part in now]:
        raise ServiceError(
            "the scores have changed since the explanation was made, so the picture would show "
            "others; explain again"
        )
    yield Work(partial(_write, target, content))


def _explain(rules: Rules, asked: ExplainRequest) -> Flow[EvidenceModel]:
    request = Request("POST", address_of("explain"), body=JsonBody.of(asked))
    return (yield from exchange(request, rules, model_of(EvidenceModel, rules)))


def _hit_name(argument: str, hit: Hit) -> dict[str, object]:
    segment = hit.segment if isinstance(hit, SearchResult) else None
    return {"video": name_of(argument, hit), "segment": segment}


def _write(target: Path, content: bytes) -> None:
    try:
        with replaced_file(target) as partial_path:
            partial_path.write_bytes(content)
    except OSError as error:
        raise InvalidArgumentError(
            f"{target} cannot be written: {error.strerror or error}"
        ) from error
