"""The agent: everything that runs on the instance, and nothing else.

Standard library only, Python 3.10 to 3.13; imports nothing of ``gce_backend`` outside this
folder, since the client ships the folder by itself as a zipapp. ``main.py`` is the door,
``lifecycle.py`` the order of things, ``relay.py`` the tracking server that the trainer sees.
"""
