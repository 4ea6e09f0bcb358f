"""Parts chosen by name, and the modules of other people that bring them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relgan import registry
from relgan.cli.command import Line
from relgan.cli.compose import compose
from relgan.options import ConfigError, Options, option
from relgan.registry import (
    GROUPS,
    LOSSES,
    PENALTIES,
    LossOptions,
    PenaltyOptions,
    Registry,
    load_plugins,
    register_cost,
    register_loss,
    register_penalty,
)


@dataclass
class MarginOptions(LossOptions):
    margin: float = option(1.0, "how far apart", gt=0)


# --- entries ---


def test_a_name_gives_its_part_and_an_unknown_one_is_one_line() -> None:
    assert LOSSES["ragan"].name == "ragan"
    assert "ragan" in LOSSES
    assert "gan" not in LOSSES
    assert list(LOSSES) == list(LOSSES.names())
    with pytest.raises(
        ConfigError, match=r"^penalty\.name: 'dragn' is not one of none, gp, .*; did you mean dragan\?$"
    ):
        PENALTIES["dragn"]


@pytest.mark.parametrize("kind", GROUPS)
def test_every_part_says_in_one_line_what_it_is(kind: str) -> None:
    for entry in GROUPS[kind].values():
        assert entry.about or kind == "loss", entry.name
        assert "\n" not in entry.about
        assert entry.options.name == entry.name
        assert not entry.foreign


def test_a_decorator_registers_what_it_decorates() -> None:
    @register_loss("margin", MarginOptions)
    class Margin:
        """My margin loss.

        More of it.
        """

        def __init__(self, options: MarginOptions) -> None:
            self.options = options

    entry = LOSSES["margin"]
    assert (entry.about, entry.origin, entry.foreign) == ("My margin loss.", __name__, True)
    assert entry.options == MarginOptions("margin", 1.0)
    assert isinstance(entry.build(entry.options), Margin)
    assert list(LOSSES)[-1] == "margin"


def test_options_may_be_an_instance_with_other_defaults_and_stay_its_own() -> None:
    mine = MarginOptions(margin=3.0)
    register_loss("margin", mine, "a:b", about="a margin")
    assert LOSSES["margin"].options == MarginOptions("margin", 3.0)
    assert mine.name == ""
    assert LOSSES["margin"].about == "a margin"


def test_a_builder_given_by_name_is_imported_when_it_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late_builder.py").write_text("def build(options): return [options.name]\n", encoding="utf-8")
    register_penalty("late", builder="late_builder:build")
    assert PENALTIES["late"].origin == "late_builder"
    assert "late_builder" not in sys.modules
    assert PENALTIES["late"].build(PENALTIES["late"].options) == ["late"]
    monkeypatch.delitem(sys.modules, "late_builder")


def test_a_name_twice_is_refused_with_both_modules() -> None:
    register_loss("mine", builder="first:build")
    with pytest.raises(ConfigError, match=r"^loss\.name: mine is registered twice, by first and by second$"):
        register_loss("mine", builder="second:build")
    with pytest.raises(ConfigError, match=r"^loss\.name: ragan is registered twice, by relgan\.losses and by second$"):
        register_loss("ragan", builder="second:build")
    register_loss("rother", builder="first:build")
    with pytest.raises(ConfigError, match=r"^loss\.name: rother is registered twice, by first and by second$"):
        register_cost("other", "second:build", forms=("paired",))


def test_a_notebook_may_run_its_cell_again() -> None:
    for text in ("first", "second"):
        register_loss("mine", builder="__main__:build", about=text)
    assert LOSSES["mine"].about == "second"


@dataclass
class Other(Options):
    """Derived from another base."""


@pytest.mark.parametrize("options", [PenaltyOptions, Other, Other()])
def test_options_of_another_base_are_refused(options: Any) -> None:
    with pytest.raises(TypeError, match=r"^loss mine: the options must be a dataclass derived from LossOptions$"):
        register_loss("mine", options, "a:b")
    assert "mine" not in LOSSES


def test_the_kinds_do_not_share_names() -> None:
    names = [each.kind for each in vars(registry).values() if isinstance(each, Registry)]
    assert sorted(names) == ["augment", "cost", "dataset", "extractor", "loss", "model", "penalty", "score", "tracker"]
    register_penalty("ragan", builder="a:b")
    assert (LOSSES["ragan"].origin, PENALTIES["ragan"].origin) == ("relgan.losses", "a")


# --- plugins ---

PLUGIN = """
from dataclasses import dataclass
from relgan.options import option
from relgan.registry import LossOptions, register_loss

@dataclass
class Margin(LossOptions):
    margin: float = option(1.0, "how far apart", gt=0)

register_loss("{name}", Margin, "relgan.losses:combined", about="mine", origin=__name__)
"""


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imported plugins and the module path are forgotten after a test."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith("plugin_"):
            del sys.modules[name]


def plugin(path: Path, text: str = PLUGIN.format(name="margin")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_module_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    plugin(tmp_path / "plugin_installed.py")
    for _ in range(2):  # twice is once
        load_plugins(["plugin_installed"])
    assert LOSSES["margin"].origin == "plugin_installed"


def test_a_module_in_a_package(tmp_path: Path) -> None:
    plugin(tmp_path / "plugin_package" / "gan.py", "from plugin_package import parts\n")
    plugin(tmp_path / "plugin_package" / "parts.py")
    load_plugins(["plugin_package.gan"], [tmp_path])
    assert LOSSES["margin"].origin == "plugin_package.parts"


@pytest.mark.parametrize("given", ["absolute", "relative", "home"])
def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    path = plugin(tmp_path / "here" / "plugin_file.py")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    name = {"absolute": str(path), "relative": "here/plugin_file.py", "home": "~/here/plugin_file.py"}[given]
    for _ in range(2):
        load_plugins([name], [tmp_path])
    assert LOSSES["margin"].origin == "plugin_file"


@pytest.mark.parametrize("name", ["plugin_beside", "plugin_beside.py"])
def test_a_plugin_beside_the_config_dir_with_a_yaml_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    plugin(tmp_path / "my" / "plugin_beside.py")
    (tmp_path / "my" / "loss").mkdir()
    text = "defaults:\n  - override /penalty@_global_.penalty: r1\nmargin: 3.0\n"
    (tmp_path / "my" / "loss" / "margin.yaml").write_text(text, encoding="utf-8")
    config = compose(Line.of(["--config-dir", "my", f"plugins=[{name}]", "loss=margin"]))
    assert (config.loss.name, vars(config.loss)["margin"]) == ("margin", 3.0)
    assert config.penalty.name == "r1"
    config = compose(Line.of(["--config-dir=my", f"plugins=[{name}]", "loss=margin", "loss.margin=2", "penalty=none"]))
    assert (vars(config.loss)["margin"], config.penalty.name) == (2.0, "none")
    with pytest.raises(ConfigError, match=r"^loss\.margin: must be > 0, got -1$"):
        compose(Line.of(["--config-dir", "my", f"plugins=[{name}]", "loss=margin", "loss.margin=-1"]))


def test_a_plugin_needs_no_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin(tmp_path / "plugin_plain.py")
    loss = compose(Line(["plugins=[plugin_plain]", "loss=margin", "loss.lecam=0.3"])).loss
    assert vars(loss) == {"name": "margin", "margin": 1.0, "centring": 0, "lecam": 0.3}


def refused(*names: str, place: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_plugins(names, [place])
    assert caught.value.option == "plugins"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_that_raises_is_one_line(tmp_path: Path) -> None:
    plugin(tmp_path / "plugin_bad.py", "raise ValueError('no\\nreally')\n")
    for name in ("plugin_bad", "plugin_bad.py"):
        said = f"plugins: {name} cannot be imported (ValueError: no)"
        assert refused(name, place=tmp_path) == said
        assert refused(name, place=tmp_path) == said  # a second time, too
    plugin(tmp_path / "plugin_torn.py", "def (\n")
    assert refused("plugin_torn.py", place=tmp_path).startswith(
        "plugins: plugin_torn.py cannot be imported (SyntaxError: "
    )


def test_one_that_cannot_be_found_is_one_line(tmp_path: Path) -> None:
    assert "No module named 'plugin_gone'" in refused("plugin_gone", place=tmp_path)
    assert f"plugin_gone.py cannot be imported (FileNotFoundError: no such file in {tmp_path})" in refused(
        "plugin_gone.py", place=tmp_path
    )


def test_one_that_registers_a_taken_name_is_one_line(tmp_path: Path) -> None:
    plugin(tmp_path / "plugin_taken.py", PLUGIN.format(name="ragan"))
    assert refused("plugin_taken", place=tmp_path) == (
        "plugins: plugin_taken: loss.name: ragan is registered twice, by relgan.losses and by plugin_taken"
    )


def test_one_with_options_of_the_wrong_kind_is_one_line(tmp_path: Path) -> None:
    text = PLUGIN.format(name="margin").replace(
        "LossOptions, register_loss", "PenaltyOptions as LossOptions, register_loss"
    )
    plugin(tmp_path / "plugin_wrong.py", text)
    reason = "TypeError: loss margin: the options must be a dataclass derived from LossOptions"
    assert refused("plugin_wrong", place=tmp_path) == f"plugins: plugin_wrong cannot be imported ({reason})"


def test_a_file_called_like_another_module_is_one_line(tmp_path: Path) -> None:
    plugin(tmp_path / "json.py")
    assert "another module is called json; rename the file" in refused("json.py", place=tmp_path)


@pytest.mark.parametrize("word", ["plugins=mine", "plugins=[a", "plugins=[a],[b]"])
def test_plugins_that_are_no_list_are_one_line(word: str) -> None:
    with pytest.raises(ConfigError, match=r"^plugins: ") as caught:
        compose(Line([word]))
    assert "\n" not in str(caught.value)


def test_registering_needs_no_torch() -> None:
    code = "import sys; from relgan.registry import LOSSES; len(LOSSES); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
