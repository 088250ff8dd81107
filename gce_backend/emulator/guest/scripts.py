"""Startup and shutdown scripts, found and run as Google's guest agent does it.

After ``google_metadata_script_runner`` of GoogleCloudPlatform/guest-agent: ``startup-script``, then
what ``startup-script-url`` points at; the instance's own, or the project's if it has neither.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote

import aiohttp
from yarl import URL

from .machine import Machine

_ATTEMPTS = 3
_SECONDS = 60.0  # for one attempt to fetch a script
# The ways to write an object of Cloud Storage that the agent knows.
_OBJECTS = tuple(
    re.compile(form)
    for form in (
        r"gs://(?P<bucket>[^/]+)/(?P<name>.+)",
        r"https?://(?:storage\.googleapis\.com|storage\.cloud\.google\.com|"
        r"commondatastorage\.googleapis\.com)/(?P<bucket>[^/]+)/(?P<name>.+)",
        r"https?://(?P<bucket>[^/]+)\.storage\.googleapis\.com/(?P<name>.+)",
    )
)


class ScriptRunner:
    """Runs an instance's scripts as root, their output on serial port 1.

    Args:
        metadata: the instance's attributes and the project's, at this moment.
        storage_url: of Cloud Storage, as the instance reaches it.
        token: an access token of the instance; None where it has no service account.
    """

    def __init__(
        self,
        machine: Machine,
        metadata: Callable[[], tuple[Mapping[str, str], Mapping[str, str]]],
        storage_url: Callable[[], str],
        token: Callable[[], str | None],
    ) -> None:
        self._machine = machine
        self._metadata = metadata
        self._storage_url = storage_url
        self._token = token

    async def run(self, occasion: str) -> None:
        """All scripts of an ``occasion``: ``startup`` or ``shutdown``."""
        found = self._find(occasion)
        if not found:
            self._log(f"No {occasion}-script in metadata.")
        for key, value in found.items():
            if not key.endswith("-url"):
                await self._run(key, value)
            elif (text := await self._fetch(key, value)) is not None:
                await self._run(key, text)

    def _find(self, occasion: str) -> dict[str, str]:
        keys = (f"{occasion}-script", f"{occasion}-script-url")
        for attributes in self._metadata():
            if found := {key: attributes[key] for key in keys if attributes.get(key)}:
                return found
        return {}

    async def _run(self, key: str, text: str) -> None:
        file = self._machine.directory / key
        file.write_text(text)
        file.chmod(0o700)
        with self._machine.serial_file.open("ab") as serial:
            process = self._machine.spawn([*_interpreter(text), str(file)], output=serial)
        status = await process.wait()
        self._log(f"{key} exit status {status}")

    async def _fetch(self, key: str, url: str) -> str | None:
        """The script that ``url`` points at; None, and a line on the port, if it cannot be had."""
        why = ""
        for attempt in range(_ATTEMPTS):
            await asyncio.sleep(attempt)
            try:
                return await self._get(url.strip())
            except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError) as error:
                why = str(error) or type(error).__name__
        self._log(f'Script "{key}" failed with error: {url}: {why}')
        return None

    async def _get(self, url: str) -> str:
        """Objects come from the emulated storage; everything else from where it says."""
        headers = {}
        place = next((found for form in _OBJECTS if (found := form.fullmatch(url))), None)
        if place is not None:
            path = f"b/{quote(place['bucket'])}/o/{quote(place['name'], safe='')}?alt=media"
            url = f"{self._storage_url()}/storage/v1/{path}"
            if (token := self._token()) is not None:
                headers["Authorization"] = f"Bearer {token}"
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        # A proxy of this machine is on the way to the internet, not to the emulator.
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=place is None) as session,
            session.get(URL(url, encoded=True), headers=headers) as answer,
        ):
            answer.raise_for_status()
            return (await answer.read()).decode()

    def _log(self, text: str) -> None:
        self._machine.log(f"google_metadata_script_runner: {text}")


def _interpreter(text: str) -> list[str]:
    """What runs a script: its first line's ``#!``, else bash."""
    first = text.partition("\n")[0]
    words = first.removeprefix("#!").split(maxsplit=1)
    return words if first.startswith("#!") and words else ["/bin/bash"]
