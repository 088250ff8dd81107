"""Two questions about URLs: does this one leave the machine, and does it carry credentials?"""

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


def without_credentials(text: str) -> str:
    """A URL, or a text with URLs in it, without ``user:password@``."""
    return _USERINFO.sub("//", text)
