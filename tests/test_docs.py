"""The manual: it builds without a warning, and the messages that it explains are those that are given."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="pip install .[docs]")
    built = tmp_path / "site"
    command = ["-m", "mkdocs", "build", "--strict", "--quiet", "-f", REPOSITORY / ".ci" / "mkdocs.yml", "-d", built]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in DOCS.glob("*.md")}
    assert pages <= {page.stem for page in built.glob("*.html")}
    assert "lunar-env" in (built / "index.html").read_text(encoding="utf-8")  # taken over from the README


def test_every_page_is_in_the_table_of_contents_once() -> None:
    contents = (REPOSITORY / ".ci" / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert sorted(re.findall(r"([\w-]+\.md)", contents)) == sorted(page.name for page in DOCS.glob("*.md"))


def test_messages_that_are_explained_are_messages_that_are_given() -> None:
    given = [text for folder in ("lunar_processing", "lunar_qgis_plugin") for text in literals(REPOSITORY / folder)]
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    explained = [part.strip() for line in re.findall(r"^> (.+)$", text, re.M) for part in line.split("…")]
    assert len(explained) > 10
    assert [part for part in explained if not any(part in literal for literal in given)] == []


def literals(folder: Path) -> list[str]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
