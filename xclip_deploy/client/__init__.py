"""Clients of a service (extra ``client``): the verbs and results of a Retriever over HTTP.

>>> from xclip_deploy import Client
>>> client = Client("http://127.0.0.1:8000")         # doctest: +SKIP
>>> client.search("a dog on a leash", k=3)           # doctest: +SKIP
"""

from __future__ import annotations

from xclip_deploy.client.async_client import AsyncClient
from xclip_deploy.client.jobs import AsyncJob, Job
from xclip_deploy.client.sync_client import Client
from xclip_deploy.client.verbs import TextBank

__all__ = ["AsyncClient", "AsyncJob", "Client", "Job", "TextBank"]
