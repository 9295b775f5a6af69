"""HTTP service over one bundle and one gallery, with a page (extra ``serve``)."""

from __future__ import annotations

from xclip_deploy.service.app import create_app
from xclip_deploy.service.security.tokens import read_token
from xclip_deploy.service.serving import serve
from xclip_deploy.service.settings import ClusterSettings, ServiceSettings

__all__ = ["ClusterSettings", "ServiceSettings", "create_app", "read_token", "serve"]
