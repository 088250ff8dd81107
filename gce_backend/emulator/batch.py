"""``/batch/compute/v1``: several requests in one, as ``multipart/mixed``.

gcloud sends it when one command names two or more instances.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

from .api import Api, Reply, Request
from .errors import invalid
from .life import Life

PATH = "/batch/compute/v1"


@dataclass(frozen=True)
class Part:
    """One request inside a batch; ``identifier``: its Content-ID, answered as ``response-…``."""

    identifier: str
    request: Request


async def serve(
    api: Api, headers: Mapping[str, str], body: bytes, caller: Life | None
) -> tuple[str, bytes]:
    """(content type, body) of the answer. The batch's ``Authorization`` is that of its parts.

    Raises:
        ApiError: 400, it is no batch.
        ReplyLost: a fault struck one of the requests.
    """
    boundary = f"batch_{secrets.token_hex(12)}"
    pieces = []
    for part in _parts(headers, body, caller):
        reply = await api.dispatch(part.request)
        pieces.append(f"--{boundary}\r\n{_answer(part.identifier, reply)}\r\n")
    whole = "".join(pieces) + f"--{boundary}--\r\n"
    return f"multipart/mixed; boundary={boundary}", whole.encode()


def _parts(headers: Mapping[str, str], body: bytes, caller: Life | None) -> Iterator[Part]:
    content_type = headers.get("Content-Type", "")
    common = {key: headers[key] for key in ("Authorization",) if key in headers}
    message = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    if not message.is_multipart():
        raise invalid("A batch is multipart/mixed.")
    for part in message.walk():
        if part.get_content_type() == "application/http":
            yield Part(str(part.get("Content-ID", "")), _request(part, common, caller))


def _request(part: Message, common: Mapping[str, str], caller: Life | None) -> Request:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        raise invalid("A part of the batch has no request.")
    line, _, rest = payload.replace(b"\r\n", b"\n").lstrip().partition(b"\n")
    words = line.decode().split()
    if len(words) < 2:
        raise invalid(f"A part of the batch begins with '{line.decode()}'.")
    target = urlsplit(words[1])
    inner = message_from_bytes(rest)
    content = inner.get_payload(decode=True)
    return Request(
        method=words[0],
        path=target.path,
        query=dict(parse_qsl(target.query, keep_blank_values=True)),
        headers={**common, **{key.title(): str(value) for key, value in inner.items()}},
        body=content.strip() if isinstance(content, bytes) else b"",
        caller=caller,
    )


def _answer(identifier: str, reply: Reply) -> str:
    text = json.dumps(reply.body)
    named = identifier.replace("<", "<response-", 1) if identifier.startswith("<") else identifier
    return (
        f"Content-Type: application/http\r\nContent-ID: {named}\r\n\r\n"
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\n"
        f"Content-Type: application/json; charset=UTF-8\r\n"
        f"Content-Length: {len(text.encode())}\r\n\r\n{text}\r\n"
    )
