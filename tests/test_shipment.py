"""What lies in the bucket before an instance may bill."""

import io
import zipfile

from gce_backend.shipment import agent_archive


def test_the_agents_archive_is_the_same_bytes_for_the_same_sources():
    assert agent_archive() == agent_archive()


def test_the_agents_archive_holds_the_agent_alone():
    names = zipfile.ZipFile(io.BytesIO(agent_archive())).namelist()

    assert "__main__.py" in names
    assert "agent/main.py" in names
    assert all(name.startswith("agent/") or name == "__main__.py" for name in names)
