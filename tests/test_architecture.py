"""The house stands as drawn: imports point down, `import fastconv` is cheap, nothing grows too long."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv
from fastconv import nn

PACKAGE = Path(fastconv.__file__).parent
REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Bottom first. A room may import rooms below it and itself, nothing above.
FLOORS = (
    "kernels",
    "memory",
    "checks",
    "threads",
    "environment",
    "geometry",
    "algorithms",
    "layout",
    "measurement",
    "selection",
    "lowering",
    "plan",
    "functional",
    "comparison",
    "nn",
    "training",
    "plot",
    "demo",
    "cli",
    "__init__",
)
# (importing module, imported room): why it may climb. Only inside functions.
MAY_CLIMB = {
    ("fastconv.nn.model", "training"): "fit and evaluate stand on the model, where users look for them",
}

OPTIONAL = {
    "sklearn": "demo",
    "tqdm": "demo",
    "matplotlib": "plot",
    "scipy": None,
    "torch": None,
    "onnx": None,
    "onnxruntime": None,
    "pandas": None,
    "IPython": None,
}
LONGEST_FILE, LONGEST_FUNCTION = 500, 60


def room(module: str) -> str:
    """The floor a dotted name of this package lies on; names the package itself defines are __init__'s."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "__init__"


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(path: Path):
    """(names that one import statement may mean, whether it is inside a function) of a module."""
    inside = set()
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside.update(id(node) for node in ast.walk(function))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write the whole name instead of a relative import"
            for alias in node.names:
                submodule = node.module == "fastconv" and alias.name in FLOORS
                yield f"fastconv.{alias.name}" if submodule else node.module, id(node) in inside


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_down(path):
    here = room(dotted(path))
    assert here != "__init__" or path == PACKAGE / "__init__.py", f"{path} lies on no floor: add it to FLOORS"
    for name, in_function in imports(path):
        if name.split(".")[0] != "fastconv":
            continue
        there = room(name)
        if there == here:
            continue
        excused = in_function and (dotted(path), there) in MAY_CLIMB
        assert FLOORS.index(there) < FLOORS.index(here) or excused, f"{dotted(path)} climbs to {name}"


def test_excuses_are_in_use():
    used = {(dotted(path), room(name)) for path in MODULES for name, inside in imports(path) if inside}
    assert set(MAY_CLIMB) <= used


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_numpy_is_the_only_dependency(path):
    """Optional libraries are imported inside the function that uses them."""
    for name, in_function in imports(path):
        top = name.split(".")[0]
        known = top in ("fastconv", "numpy") or top in sys.stdlib_module_names
        assert known or (in_function and top in OPTIONAL), f"{dotted(path)} imports {name}"
        assert top != "pickle", "pickle executes what it reads"


def run(code, environment=None):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.split()


def test_import_is_cheap(tmp_path):
    # CPU time, and the best of several: what other processes do meanwhile is none of its cost. Bytecode is
    # kept, as an installed package has it, also where the environment turns it off for a source tree.
    code = "import time, numpy; t = time.process_time(); import fastconv; print(time.process_time() - t)"
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    run(code, environment)  # writes the bytecode and warms the file cache
    assert any(float(run(code, environment)[0]) <= 0.050 for _ in range(25))


def test_import_brings_no_optional_library():
    code = "import sys, numpy; old = set(sys.modules); import fastconv; print(*set(sys.modules) - old)"
    new = {name.split(".")[0] for name in run(code)}
    assert not new & set(OPTIONAL)


def sources():
    """Every Python and Cython file of the repository, or of the installed package alone."""
    if (REPOSITORY / "setup.py").exists():
        folders = [REPOSITORY / name for name in ("src", "tests", "benchmarks")]
        found = [
            path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".pyx", ".h")
        ]
        return [REPOSITORY / "setup.py", *sorted(found)]
    return MODULES


def name_of(path):
    return str(path.relative_to(REPOSITORY if path.is_relative_to(REPOSITORY) else PACKAGE))


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_no_file_is_too_long(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def python_functions(path):
    """(name, lines without the docstring) of every function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                lines -= first.end_lineno - first.lineno + 1
            yield node.name, lines


def cython_functions(path):
    """(name, lines without the docstring) of every function: up to the last line indented deeper."""
    lines = re.sub(r'""".*?"""\n', "", path.read_text(), flags=re.S).splitlines()
    for start, line in enumerate(lines):
        match = re.match(r"( *)(?:cp?def|def)\b[^=]*?(\w+)\(", line)
        if not match:
            continue
        indent, end = len(match[1]), start
        for number in range(start + 1, len(lines)):
            text = lines[number]
            closes_signature = text.lstrip().startswith(")")
            if text.strip() and len(text) - len(text.lstrip()) <= indent and not closes_signature:
                break
            if text.strip():
                end = number
        yield match[2], end - start + 1


@pytest.mark.parametrize("path", [path for path in sources() if path.suffix != ".h"], ids=name_of)
def test_no_function_is_too_long(path):
    functions = cython_functions(path) if path.suffix == ".pyx" else python_functions(path)
    too_long = {name: lines for name, lines in functions if lines > LONGEST_FUNCTION}
    assert not too_long


def test_every_layer_is_documented():
    """docs/layers.md has an entry for each registered layer of the package, in backticks."""
    page = REPOSITORY / "docs" / "layers.md"
    if not page.exists():
        pytest.skip("the installed package has no docs")
    named = set(re.findall(r"`(\w+)`", page.read_text()))
    public = {name: getattr(nn, name) for name in nn.__all__}
    layers = {
        name for name, value in public.items() if isinstance(value, type) and issubclass(value, nn.Layer)
    }
    layers -= {"Layer", "Composite"}  # what they are made from
    assert len(layers) > 20
    assert layers <= named, f"missing in docs/layers.md: {', '.join(sorted(layers - named))}"
