"""The shape of the source tree: imports point downward, commands start without torch, modules stay short."""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
# By longest prefix. An import goes to a lower layer or stays on its own.
LAYERS = {
    "relgan": 0,
    "relgan.config": 0,
    "relgan.files": 0,
    "relgan.images": 0,
    "relgan.distributed": 0,
    "relgan.rundir": 1,
    "relgan.losses": 1,
    "relgan.penalties": 1,
    "relgan.networks": 1,
    "relgan.data": 1,
    "relgan.metrics": 1,
    "relgan.tracking": 1,
    "relgan.report": 1,
    "relgan.metrics.evaluator": 2,
    "relgan.training": 2,
    "relgan.training.loop": 3,
    "relgan.training.run": 3,
    "relgan.build": 4,
    "relgan.rescore": 4,
    "relgan.cli": 5,
}
# What --help and --cfg job load, the report, and all that they import.
LIGHT = ("relgan.config", "relgan.rundir", "relgan.cli", "relgan.tracking.console", "relgan.report")
HEAVY = {"torch", "torchvision", "torchmetrics", "torch_fidelity", "lpips", "wandb", "sklearn"}
MAX_LINES = 320
MAX_CODE_LINES = 6500
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((SRC / "relgan").rglob("*.py"))}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(node: ast.AST, *, everywhere: bool) -> Iterator[ast.AST]:
    """Import statements of a module: everywhere, or only those that run when it is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif everywhere or not (isinstance(child, ast.FunctionDef) or is_type_checking(child)):
            yield from statements(child, everywhere=everywhere)


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(module: str, *, everywhere: bool) -> set[str]:
    """Full names of the modules that ``module`` imports; of other packages too."""
    found = set()
    for node in statements(parse(MODULES[module]), everywhere=everywhere):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found


def layer(module: str) -> int:
    prefixes = [prefix for prefix in LAYERS if module == prefix or module.startswith(f"{prefix}.")]
    return LAYERS[max(prefixes, key=len)]


def unit(module: str) -> str:
    """The file or package directly below relgan that a module belongs to."""
    return ".".join(module.split(".")[:2])


def test_the_table_names_modules_that_exist() -> None:
    planned = {"relgan.report"}
    assert set(LAYERS) - set(MODULES) <= planned
    unknown = {unit(module) for module in MODULES} - set(LAYERS)
    assert not unknown, f"modules without a layer: {unknown}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    upward = [name for name in imports(module, everywhere=True) if name in MODULES and layer(name) > layer(module)]
    assert not upward, f"{module} (layer {layer(module)}) imports {upward}"


def test_packages_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        needed = {unit(name) for name in imports(module, everywhere=True) if name in MODULES}
        graph.setdefault(unit(module), set()).update(needed - {unit(module)})
    TopologicalSorter(graph).prepare()  # raises CycleError


def loaded_with(module: str) -> set[str]:
    """Everything that importing ``module`` imports: relgan's modules and the top names of other packages."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in MODULES:
            seen.add(name.partition(".")[0])
        elif name not in seen:
            seen.add(name)
            parents = [name.rpartition(".")[0]] if "." in name else []
            waiting += [*parents, *imports(name, everywhere=False)]
    return seen


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(LIGHT)])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert not loaded_with(module) & HEAVY


@pytest.mark.parametrize("module", MODULES)
def test_what_takes_seconds_to_import_is_imported_where_it_is_used(module: str) -> None:
    heavy = {name.partition(".")[0] for name in imports(module, everywhere=False)} & HEAVY
    assert heavy <= ({"torch", "torchmetrics"} if module.startswith("relgan.metrics.") else {"torch"})


@pytest.mark.parametrize("module", ["relgan.build", "relgan.training.loop"])
def test_a_run_without_scores_loads_torch_alone(module: str) -> None:
    assert loaded_with(module) & HEAVY == {"torch"}


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor comment, nor docstring."""
    source = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE and token.string.strip():
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) < MAX_LINES


def test_the_whole_is_small() -> None:
    assert sum(map(code_lines, MODULES.values())) < MAX_CODE_LINES


def test_the_reader_of_imports_sees_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from typing import TYPE_CHECKING
import torch.nn
if TYPE_CHECKING:
    import wandb
def late():
    from relgan import losses
try:
    import sklearn
except ImportError:
    pass
"""
    path = tmp_path / "made.py"
    path.write_text(source)
    monkeypatch.setitem(MODULES, "made", path)
    assert imports("made", everywhere=False) == {"typing", "torch.nn", "sklearn"}
    assert imports("made", everywhere=True) == {"typing", "torch.nn", "sklearn", "wandb", "relgan.losses"}
