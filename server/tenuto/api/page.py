"""The page at `/` and its files: open to all, since the page itself asks for the key."""

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parents[1] / "web"
PREFIX = "/static/page"
HEADERS = {
    # Trusted types: a browser refuses any script of the page that would make markup of a text.
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    # Kept, and asked for again by its etag: so that a new version is seen at once.
    "cache-control": "no-cache",
}


class PageFiles(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


FILES = PageFiles(directory=FOLDER)


async def page(request: Request) -> Response:
    return await FILES.get_response("index.html", request.scope)
