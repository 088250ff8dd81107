"""What runs one job of a sweep on its instance: shipped with the job, as one zip.

The standard library and Hydra, nothing else of ours: the instance has only what the project asks
for. ``__main__.py`` starts the job in a process of its own, so that whatever becomes of that one,
its files come back and somebody says how it ended.
"""
