"""The tree is the architecture: imports go one way, listing imports nothing heavy, and nothing names a machine.

The order is that of docs/decisions/0001-foundation.md. Each check is also run against planted faults, so that it is
known to be able to fail.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "optative"
PARTS = (
    "core",
    "data",
    "training",
    "generators",
    "environments",
    "objectives",
    "feedback",
    "rewards",
    "optimizers",
    "agents",
    "evaluation",
    "runs",
    "systems",
    "app",
    "cli",
)
HEAVY = ("torch", "transformers", "peft", "matplotlib", "pyarrow", "scipy", "pandas")


def imported(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything of optative that a module imports, also inside functions and by a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - 1 if is_package else node.level
                parents = module.split(".")[: len(module.split(".")) - up]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            if base == "optative":  # `from optative import data` imports a part, `from .. import data` too
                yield from ((node.lineno, f"optative.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, base
        elif isinstance(node, ast.Constant) and re.fullmatch(r"optative(\.\w+)+:\w+", str(node.value)):
            yield node.lineno, str(node.value).partition(":")[0]  # a table's "module:function"


def wrong_imports(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What a module imports against the order, in words."""
    if module in ("optative", "optative.__main__"):  # the front door may show anything
        return []
    part = module.split(".")[1]
    if part not in PARTS:
        return [f"{module}: {part!r} is not a part; name it in PARTS, with a decision record, or move it"]
    wrong = []
    for line, name in imported(source, module, is_package=is_package):
        pieces = name.split(".")
        if pieces[0] != "optative" or name == "optative.__version__":
            continue
        other = pieces[1] if len(pieces) > 1 else ""
        if other not in PARTS:
            wrong.append(f"{module}:{line} imports {name!r}, which is not in a part. Import from the part itself.")
        elif PARTS.index(other) > PARTS.index(part):
            wrong.append(
                f"{module}:{line} imports optative.{other}, which stands below optative.{part} in the order of parts. "
                "Pass it in as an argument instead."
            )
    return wrong


def modules() -> Iterator[tuple[Path, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        pieces = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield path, ".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces)


def test_imports_go_up_the_order_only() -> None:
    wrong = [
        fault
        for path, module in modules()
        for fault in wrong_imports(path.read_text("utf-8"), module, is_package=path.name == "__init__.py")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("optative.data.records", "from optative.core.errors import InputError", None),
        ("optative.data.records", "from optative import core, __version__", None),
        ("optative.data.records", "import torch.optative.runs", None),
        ("optative.runs.wire", "from ..data import records\nfrom .spec import Spec", None),
        ("optative.data.records", "import optative.runs.spec", "stands below"),
        ("optative.data.records", "from optative import runs", "stands below"),
        ("optative.data.records", "from optative import runs as r, core", "stands below"),
        ("optative.data.records", "def f():\n    from optative.optimizers.loop import loop", "stands below"),
        ("optative.data.records", "from ..runs import spec", "stands below"),
        ("optative.data.records", "from .. import runs", "stands below"),
        ("optative.optimizers.losses.pairs", "from ...evaluation.report import html", "stands below"),
        ("optative.feedback.options", "T = {'dpo': (X, 'optative.optimizers.preference:train')}", "stands below"),
        ("optative.data.records", "from optative import align", "not in a part"),
        ("optative.data.records", "import optative", "not in a part"),
        ("optative.data.records", "import optative.utils.misc", "not in a part"),
        ("optative.utils.misc", "", "is not a part"),
        ("optative.helpers", "", "is not a part"),
    ],
)
def test_a_planted_import_is_found(module: str, source: str, expected: str | None) -> None:
    wrong = wrong_imports(source, module)
    assert len(wrong) == (0 if expected is None else 1)
    assert expected is None or expected in wrong[0]


def test_a_package_resolves_relative_imports_from_itself() -> None:
    assert not wrong_imports("from .records import Judgement", "optative.data", is_package=True)
    assert wrong_imports("from ..runs import spec", "optative.data", is_package=True)


def test_every_folder_is_a_part() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(PARTS), f"not in the order of parts: {sorted(folders - set(PARTS))}"


def test_options_core_systems_and_cli_import_nothing_heavy() -> None:
    light = [
        module
        for path, module in modules()
        if path.stem == "options" or module.split(".")[1:2] in (["core"], ["systems"], ["cli"]) or module == "optative"
    ]
    assert "optative.cli.main" in light
    program = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    found = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    assert not found, f'importing {name} imports {found}; import them inside the functions that need them'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]


def test_every_module_says_what_it_is() -> None:
    silent = []
    for path, module in modules():
        source = path.read_text("utf-8")
        if source.strip() and not ast.get_docstring(ast.parse(source)):
            silent.append(module)
    assert not silent, f"without a docstring: {silent}"


MACHINES = {  # made-up homes in examples and tests are fine
    "a path of one machine": rf"(?<![\w.~$}}*-])(?:/(?:root|w[o]rk)|{re.escape(str(ROOT))})/\w",
    # Written so that the patterns themselves name none.
    "the host of a package registry": r"(?:py[p]i|pythonhoste[d]|np[m]js|de[b]\.debia[n]|\.pytorc[h])\.(?:org|com)",
}


def test_no_file_names_a_machine() -> None:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    wrong = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            wrong += [f"{name}:{number} names {what}" for what, pattern in MACHINES.items() if re.search(pattern, line)]
    assert not wrong, "\n".join(wrong)


def test_planted_machine_names_are_found() -> None:
    path, host = MACHINES.values()
    for text in ("'/root" + "/x'", "(/w" + "ork/main)", f"see {ROOT}/README.md"):
        assert re.search(path, text)
    for text in ("net/w" + "ork/x", "~/ro" + "ot/x", "a/ro" + "ot/b", "$HOME/ro" + "ot/x", "/home/somebody/x"):
        assert not re.search(path, text)
    assert re.search(host, "https://py" + "pi.org/simple")
