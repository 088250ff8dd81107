"""The emulator is a program of its own: small files, and nothing else of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gce_backend.emulator

ROOT = Path(gce_backend.emulator.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 310
MAX_FUNCTION_LINES = 50


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_a_file_is_small_and_imports_nothing_else_of_ours(file: Path) -> None:
    text = file.read_text()
    tree = ast.parse(text)
    imported = [
        (node.level, node.module or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    ]
    depth = len(file.relative_to(ROOT).parts)
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert len(text.splitlines()) <= MAX_LINES
    assert all(level <= depth for level, _ in imported)
    assert not any(level == 0 and module.startswith("gce_backend") for level, module in imported)
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno > MAX_FUNCTION_LINES] == []
