"""The shape of the source tree: imports point downward, also inside packages; commands start without torch."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
# From the ground up, by longest prefix. An import goes to a lower layer or stays on its own.
LAYERS = {
    name: height
    for height, names in enumerate(
        (
            ("relgan", "relgan.options"),
            (
                *("relgan.registry", "relgan.cache", "relgan.files", "relgan.environment", "relgan.distributed"),
                *("relgan.streams", "relgan.device"),
            ),
            ("relgan.builtin", "relgan.config", "relgan.images", "relgan.progress"),
            (
                *("relgan.augment", "relgan.data", "relgan.losses", "relgan.penalties", "relgan.rundir"),
                *("relgan.metrics.catalogue", "relgan.metrics.interval"),
            ),
            ("relgan.networks", "relgan.side_terms", "relgan.tracking"),
            ("relgan.metrics", "relgan.report"),
            ("relgan.training",),
            ("relgan.resume",),
            ("relgan.build", "relgan.generator"),
            ("relgan.cli",),
            ("relgan.api",),
        )
    )
    for name in names
}
# What --help and --cfg job load, the report, and all that they import.
LIGHT = (
    *("relgan.options", "relgan.registry", "relgan.builtin", "relgan.config", "relgan.data.sets", "relgan.rundir"),
    *("relgan.metrics.catalogue", "relgan.resume", "relgan.cli", "relgan.tracking.console", "relgan.report"),
    "relgan.progress",
)
HEAVY = {"torch", "torchvision", "torchmetrics", "torch_fidelity", "lpips", "wandb", "sklearn"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((SRC / "relgan").rglob("*.py"))}
# The package's face hands on names from everywhere, and imports them only when they are used.
ROOMS = [module for module in MODULES if module != "relgan"]


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


def test_the_table_names_modules_that_exist_and_every_room() -> None:
    assert set(LAYERS) <= set(MODULES)
    rooms = {".".join(module.split(".")[:2]) for module in MODULES}
    assert rooms <= set(LAYERS)


@pytest.mark.parametrize("module", ROOMS)
def test_imports_point_downward(module: str) -> None:
    upward = [name for name in imports(module, everywhere=True) if name in MODULES and layer(name) > layer(module)]
    assert not upward, f"{module} (layer {layer(module)}) imports {upward}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither packages nor modules inside one; a package's face and what it hands on are one."""
    graph = {module: {name for name in imports(module, everywhere=True) if name in ROOMS} for module in ROOMS}
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
    scores = module.startswith("relgan.metrics.") and module != "relgan.metrics.catalogue"
    assert heavy <= ({"torch", "torchmetrics"} if scores else {"torch"})


@pytest.mark.parametrize("module", ["relgan.build", "relgan.generator", "relgan.training.loop"])
def test_a_run_without_scores_loads_torch_alone(module: str) -> None:
    assert loaded_with(module) & HEAVY == {"torch"}


def test_importing_relgan_loads_nothing() -> None:
    assert loaded_with("relgan") <= {"relgan", "__future__", "importlib", "typing"}


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
