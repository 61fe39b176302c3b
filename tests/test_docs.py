"""What README and docs/ show is run: every Python fence of a page, in order, in one namespace and an empty folder."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
REACH = ROOT / "examples" / "reach"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
# <!-- not run: why --> and <!-- needs: package --> stand on the line before the fence that they are about.
FENCE = re.compile(r"^(?:<!-- (not run|needs): ([^\n]+) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)|<img src=\"(?!https?:)([^\"]+)\"")
FILE = re.compile(r"# (examples/reach/\w+\.py)\n")


def name_of(page):
    return str(page.relative_to(ROOT))


def fences(page):
    """(first line, mark, its text, code) of every Python fence of a page."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(3)) + 1, m[1], m[2], m[3]) for m in FENCE.finditer(text)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the files of examples/reach, where a reader of the pages works."""
    for path in REACH.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    random = torch.get_rng_state()
    yield tmp_path
    torch.set_rng_state(random)
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_the_page_runs(page, folder):
    names = {"__name__": "page"}
    for line, mark, text, code in fences(page):
        if mark == "not run" or FILE.match(code) or (mark == "needs" and importlib.util.find_spec(text) is None):
            continue
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)  # a failure names line and page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_files_and_links_of_the_page_are_there(page):
    for _, _, _, code in fences(page):
        if shown := FILE.match(code):
            assert code[shown.end() :] == (ROOT / shown[1]).read_text(encoding="utf-8"), shown[1]
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        assert (page.parent / (link[1] or link[2])).exists(), link[0]


def test_every_file_of_the_example_is_shown_on_a_page():
    shown = {FILE.match(code)[1] for page in PAGES for _, _, _, code in fences(page) if FILE.match(code)}
    assert shown == {str(path.relative_to(ROOT)) for path in REACH.glob("*.py")}


def test_readme_is_short_and_has_the_two_lines_that_continuous_integration_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for mark, command in (("main", "worldenv-train tabletop"), ("test", "pytest -q -n 2")):
        assert re.search(rf"^<!-- {mark} -->\n```bash\n.*pip install .* && {command}\n```$", text, re.MULTILINE)
