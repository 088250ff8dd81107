"""Questions about URLs: does this one leave the machine, does it carry credentials, and has the
emulator behind it stopped?"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse

_USERINFO = re.compile(r"//[^/@]*@")


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine by its form; a name such as 127.example.com is not."""
    hostname = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return hostname == "localhost"


def is_address(text: str) -> bool:
    """Whether it is an http(s) URL that can be asked: with a host, and a port that there can be."""
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def stopped_emulator(error: BaseException) -> str:
    """What to say where this machine itself refused a connection, which no patience mends.

    Returns:
        A sentence with the command that helps; "" for every other error.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    if not any(isinstance(each, ConnectionRefusedError) for each in chain):
        return ""
    asked = [request.url for each in chain if (request := getattr(each, "request", None))]
    if not asked or not is_loopback(asked[0]):
        return ""
    place = urllib.parse.urlsplit(asked[0])
    return (
        f"nothing listens at {place.scheme}://{place.netloc} (connection refused): the emulator "
        "has stopped, and its instances with it. Start one: mlflow-gce emulator start"
    )


def without_credentials(text: str) -> str:
    """A URL, or a text with URLs in it, without ``user:password@``."""
    return _USERINFO.sub("//", text)
