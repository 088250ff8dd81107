"""Who is not answered: web pages that a browser on this machine has open.

Everything here listens on loopback only, and asks nobody who they are: whoever has an account on
this machine may do everything. A page of another site is not such a person, but its requests come
from this machine as well: straight to a port (the browser names the page in ``Origin``), or by a
name of the site's own that it lets point to loopback (which then stands in ``Host``).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from .errors import ApiError

# By which instances call their metadata server.
_METADATA = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "169.254.169.254"})


def refusal(request: web.BaseRequest) -> web.Response | None:
    """The 403 for a web page's request; None for everybody else's."""
    if not is_foreign(request.headers):
        return None
    error = ApiError(
        403, "forbidden", "The emulator answers programs on this machine, not web pages."
    )
    return web.json_response(error.body(), status=error.code)


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from another site's page; one without a Host comes from none."""
    return not (
        ("Host" not in headers or _is_local("//" + headers["Host"]))
        and ("Origin" not in headers or _is_local(headers["Origin"]))
    )


def _is_local(url: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or name in _METADATA or ip_address(name).is_loopback
    except ValueError:
        return False
