"""The code of the README and of the documentation runs as written, and its commands exist."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import click
import pytest
import quantmm as qmm
from quantmm import errors
from quantmm.cli.main import cli
from quantmm.formats.integers import INTEGERS
from quantmm.tuning import run

ROOT = Path(qmm.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)

#: Languages of blocks that nothing runs: drawings and formulas, and what other files have.
SHOWN = ("text", "json", "toml")
SHELL = ("sh", "bash")


def blocks(page):
    """Language, title and code of each block of a page."""
    for indent, head, code in FENCE.findall(page.read_text(encoding="utf-8")):
        language, _, rest = head.partition(" ")
        yield language, rest, re.sub(f"^{indent}", "", code, flags=re.MULTILINE)


def needs_torch(code):
    return re.search(r"import torch|from quantmm\.nn|import transformers", code) is not None


def programs():
    """The blocks of a page one after the other, those that need torch by themselves."""
    missing = importlib.util.find_spec("torch") is None
    marks = [pytest.mark.torch, pytest.mark.skipif(missing, reason="torch is not installed")]
    for page in PAGES:
        code = [
            (language, text)
            for language, title, text in blocks(page)
            if language in ("python", "pycon") and "title=" not in title
        ]
        for name, wanted in (("", False), (" with torch", True)):
            if some := [each for each in code if needs_torch(each[1]) == wanted]:
                yield pytest.param(some, marks=marks if wanted else [], id=page.stem + name)


@pytest.fixture
def short(monkeypatch, tmp_path):
    """A folder to write to, and a search that looks at its arguments alone."""
    monkeypatch.chdir(tmp_path)
    signature = inspect.signature(run.tune)
    monkeypatch.setattr(run, "tune", lambda *args, **named: signature.bind(*args, **named))


@pytest.mark.parametrize("program", [*programs()])
def test_blocks_run(program, short):
    names = {"__name__": "__main__"}
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for number, (language, code) in enumerate(program):
        if language == "pycon":
            session = parser.get_doctest(code, {}, f"block {number}", None, 0)
            session.globs = names  # which would be a copy
            runner.run(session, clear_globs=False)
        else:
            exec(compile(code, f"block {number}", "exec"), names)
    assert not runner.failures


def commands():
    """What follows `quantmm` in every line of the shell blocks."""
    for page in PAGES:
        code = "\n".join(text for language, _, text in blocks(page) if language in SHELL)
        for line in code.replace("\\\n", " ").splitlines():
            for command in re.split("&&|;|[|]", line):
                match shlex.split(command, comments=True):
                    case [program, *words] if program.endswith("quantmm"):
                        yield words


def leaves(group):
    """Its commands, those of groups within it among them."""
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from leaves(command)
        else:
            yield command


@pytest.mark.parametrize("words", sorted({*map(tuple, commands())}), ids=" ".join)
def test_every_word_of_a_command_is_known(words, monkeypatch):
    called = []
    for command in leaves(cli):
        monkeypatch.setattr(command, "callback", lambda **values: called.append(values))
    cli.main([*words], "quantmm", standalone_mode=False)
    assert len(called) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_say_what_they_are(page):
    known = {"python", "pycon", "diff", *SHELL, *SHOWN}
    assert {language for language, *_ in blocks(page)} <= known
    fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len([*blocks(page)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_commands_run_exist(page):
    for language, _, code in blocks(page):
        for path in re.findall(r"python ([\w/]+\.py)", code) if language in SHELL else ():
            assert (ROOT / path).is_file(), path


def test_the_readme_begins_with_a_demo_and_an_example():
    code = [text for language, _, text in blocks(PAGES[0]) if language == "python"]
    assert code
    assert len(code[0].strip().splitlines()) <= 20
    assert ("demo",) in {*map(tuple, commands())}
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 120


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)", PAGES[0].read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_page_can_be_found():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    shown = re.findall(r": (\w+\.md)$", nav, re.MULTILINE)
    assert sorted(shown) == [page.name for page in PAGES[1:]]


def test_pages_that_comments_name_exist():
    named = {
        name
        for path in ROOT.glob("*/**/*.py")
        if not path.relative_to(ROOT).parts[0].startswith((".", "build"))
        for name in re.findall(r"docs/[a-z_]+\.(?:md|svg)", path.read_text(encoding="utf-8"))
    }
    own = {"docs/gguf.md"}  # of llama.cpp
    assert {"docs/performance.md"} < named
    assert not [name for name in named - own if not (ROOT / name).is_file()]


def test_every_extra_is_explained():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = extras.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    names = re.findall(r"^(\w+) = \[", extras, re.MULTILINE)
    assert "docs" in names
    assert sorted(names) == sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))


def test_the_page_of_mathematics_has_the_ranges_of_all_formats():
    text = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (\w+) \| (-?\d+) \| (-?\d+) \|$", text, re.MULTILINE)
    assert {name: (int(least), int(most)) for name, least, most in found} == {
        name: row.range for name, row in INTEGERS.items()
    }


def test_every_error_has_a_section():
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    found = re.findall(r"^## (\w+Error)$", text, re.MULTILINE)
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    assert sorted(found) == sorted(kind.__name__ for kind in kinds if kind is not qmm.QuantmmError)


def test_every_public_name_is_on_the_page_of_the_api():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = {*re.findall(r"^::: quantmm\.(\w+)$", text, re.MULTILINE)}
    same = {"CudaKernel", "CudaLinear"}  # other names of Kernel and Linear
    assert shown >= {*qmm.__all__} - same - {"targets"}
