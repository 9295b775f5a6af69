"""The page, and the viewer of the API's description; both come from this host alone."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import FastAPI, Response
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from xclip_deploy.errors import MissingExtraError
from xclip_deploy.service.errors import Refusal
from xclip_deploy.wire import API

PAGE = Path(__file__).resolve().parents[1] / "page"
"""Folder of the page's files."""
_KEPT = "private, max-age=86400"
_VIEWER = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>xclip-deploy: the API</title>
<link rel="icon" href="/docs/favicon.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<main id="viewer"></main>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = f"""SwaggerUIBundle({{
  url: "{API}/openapi.json",
  dom_id: "#viewer",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
}});
"""
_VIEWER_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


class _PageFiles(StaticFiles):
    """Files of the page, which browsers ask for again once they change."""

    def file_response(self, *arguments: object, **options: object) -> Response:
        """Return a file, or that it has not changed."""
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "no-cache"
        return response

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file of the page, and none whose name begins with a dot."""
        if re.search(r"(^|/)\.", path):
            raise Refusal(404, "NotFound", "the page has no such file")
        return await super().get_response(path, scope)


def add_page(app: FastAPI) -> None:
    """Add ``/``, ``/static/…`` and ``/docs``."""
    viewer = viewer_folder()

    @app.get("/", include_in_schema=False)
    @app.head("/", include_in_schema=False)
    async def page() -> Response:
        """Return the page."""
        index = PAGE / "index.html"
        if not index.is_file():
            raise Refusal(
                404, "NotFound", "this installation holds no page; expected the package's own files"
            )
        return FileResponse(index, headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """Return the viewer of the description."""
        return Response(_VIEWER, media_type="text/html")

    @app.get("/docs/start.js", include_in_schema=False)
    async def start() -> Response:
        """Return the script that starts the viewer; the policy allows none within the page."""
        return Response(_START, media_type="text/javascript")

    @app.get("/docs/{name}", include_in_schema=False)
    async def viewer_file(name: str) -> Response:
        """Return a file of the viewer."""
        if name not in _VIEWER_FILES:
            raise Refusal(404, "NotFound", "the viewer has no such file")
        return FileResponse(viewer / name, headers={"Cache-Control": _KEPT})

    if PAGE.is_dir():
        app.mount("/static", _PageFiles(directory=PAGE), name="page")


def viewer_folder() -> Path:
    """Return the folder of the viewer's files. Raises MissingExtraError."""
    try:
        import fastapi_offline
    except ModuleNotFoundError as error:
        raise MissingExtraError("fastapi-offline", "serve", "the viewer of the API") from error
    return Path(str(fastapi_offline.__file__)).parent / "static"
