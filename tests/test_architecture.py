"""The house: the tree of docs/architecture.md is the tree of files, each with its line; none too long.

``python tests/test_architecture.py`` writes the tree into the page.
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "evolving_rl_jax"
PAGE = ROOT / "docs" / "architecture.md"
TREE = re.compile(r"(?<=^## Modules\n\n```\n).*?(?=^```$)", re.M | re.S)
FILES = sorted(
    path
    for room in ("evolving_rl_jax", "benchmarks", "configs", "tests")
    for path in (ROOT / room).rglob("*.py")
)
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def summary(path: pathlib.Path) -> str:
    """The first line of a module's docstring, without what marks code in it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return text.splitlines()[0].replace("`", "") if text else ""


def tree(folder: pathlib.Path = PACKAGE, depth: int = 0) -> str:
    """Files and folders with one line each: files first, then the rooms below."""
    indent = "  " * depth
    lines = [f"{indent}{folder.name + '/':<{32 - len(indent)}} {summary(folder / '__init__.py')}\n"]
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            lines.append(f"{indent}  {path.name:<{30 - len(indent)}} {summary(path)}\n")
    rooms = [path.parent for path in sorted(folder.glob("*/__init__.py"))]
    return "".join([*lines, *(tree(room, depth + 1) for room in rooms)])


def code_lines(function, lines: list[str]) -> int:
    """Lines of a function without docstring, comments and blank lines."""
    own = lines[function.lineno - 1 : function.end_lineno]
    if ast.get_docstring(function, clean=False) is not None:
        text = function.body[0]
        del own[text.lineno - function.lineno : text.end_lineno - function.lineno + 1]
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in own)


def test_every_file_and_room_says_what_it_is():
    silent = [p for p in PACKAGE.rglob("*.py") if not summary(p)]
    assert not silent
    plates = {p.parent.name: ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))
              for p in PACKAGE.glob("*/__init__.py")}  # fmt: skip
    bare = sorted(name for name, text in plates.items() if len(text.splitlines()) < 3)
    assert not bare, "these rooms say in one line what lives there, and not who may import what"


def test_the_tree_on_the_page_is_the_tree_of_files():
    (written,) = TREE.findall(PAGE.read_text(encoding="utf-8"))
    assert written == tree(), "python tests/test_architecture.py writes it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_too_long(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= LONGEST_FILE
    sizes = {
        node.name: code_lines(node, lines)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, FUNCTION)
    }
    assert not {name: size for name, size in sizes.items() if size > LONGEST_FUNCTION}


if __name__ == "__main__":
    PAGE.write_text(
        TREE.sub(lambda _: tree(), PAGE.read_text(encoding="utf-8"), count=1), encoding="utf-8"
    )
