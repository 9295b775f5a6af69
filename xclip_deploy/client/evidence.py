"""Calls of evidence."""

from __future__ import annotations

from xclip_deploy.client.exchange import Flow
from xclip_deploy.client.settings import Rules
from xclip_deploy.runtime.arguments import PathName
from xclip_deploy.runtime.evidence import Contrast, Explanation, Hit


def explain(rules: Rules, query: str, a: Hit, b: Hit | None) -> Flow[Explanation | Contrast]:
    raise NotImplementedError


def plot(rules: Rules, explanation: Explanation | Contrast, path: PathName) -> Flow[None]:
    raise NotImplementedError
