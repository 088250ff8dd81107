"""Stand-ins on an instance's PATH for commands that would otherwise act on the real machine."""

from __future__ import annotations

import os
import sys
import venv
from pathlib import Path

from ..images import Image

# One HTTP request in bash, so that they work on an image without any package.
_POWER = """\
#!/bin/bash
# Acts on the emulated instance, not on the machine the emulator runs on.
exec 3<>/dev/tcp/{host}/{port} || exit 1
printf 'POST /_emulator/power/{action} HTTP/1.0\\r\\nContent-Length: 0\\r\\n\\r\\n' >&3
cat <&3 >/dev/null
"""
# shutdown -r reboots; every other form of it powers off.
_SHUTDOWN = """\
#!/bin/bash
for word in "$@"; do [ "$word" = -r ] && exec "$(dirname "$0")/reboot"; done
exec "$(dirname "$0")/poweroff"
"""
_USERADD = """\
#!/bin/sh
echo "useradd: an emulated instance has no users of its own" >&2
exit 1
"""
_PYTHON = """\
#!/bin/sh
exec '{python}' "$@"
"""


def install(bin_directory: Path, *, python: Path, host: str, port: int) -> None:
    """Write the commands; ``host`` and ``port`` are the instance's metadata server."""
    bin_directory.mkdir(parents=True, exist_ok=True)
    power = {
        name: _POWER.format(host=host, port=port, action=action)
        for name, action in (("poweroff", "off"), ("halt", "off"), ("reboot", "reboot"))
    }
    texts = {
        **power,
        "shutdown": _SHUTDOWN,
        "useradd": _USERADD,
        # A symbolic link to a virtual environment's python would forget the environment.
        "python": _PYTHON.format(python=python),
        "python3": _PYTHON.format(python=python),
    }
    for name, text in texts.items():
        file = bin_directory / name
        file.write_text(text)
        file.chmod(0o755)


def image_python(image: Image, directory: Path) -> Path:
    """The interpreter of an image, made in ``directory`` where it has to be."""
    if image.python == "host":
        return Path(sys.executable)
    home = directory / "python"
    if not home.exists():
        venv.EnvBuilder(with_pip=False, symlinks=os.name == "posix").create(home)
    return home / "bin" / "python3"
