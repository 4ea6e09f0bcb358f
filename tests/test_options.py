"""How options are declared, checked, read from a command line and explained."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from relgan.options import (
    HELP_WIDTH,
    ConfigError,
    check,
    explain,
    flatten,
    option,
    read,
    split_list,
    split_values,
    suggest,
    text_of,
    walk,
)


@dataclass
class Inner:
    rate: float = option(1e-3, "learning rate", gt=0)


@dataclass
class Pie:
    """Options of every type."""

    count: int = option(2, "how many", ge=1, lt=100)
    share: float | None = option(None, "how much", gt=0, le=1)
    kind: str = option("apple", "which", choices=("apple", "cherry"))
    sides: list[str] = option([], "with it", choices=lambda: ("cream", "ice"))
    hot: bool = option(True, "from the oven")
    run: str | None = option(None, "where", path=True)
    inner: Inner = field(default_factory=Inner)


def read_pie(*words: str, positional: str = "") -> Pie:
    return read(Pie, words, positional=positional)


# --- declared and checked ---


def test_a_list_is_each_instances_own() -> None:
    first, second = Pie(), Pie()
    first.sides.append("cream")
    assert second.sides == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, "count: must be ≥ 1 and < 100, got 0"),
        ("count", 100, "count: must be ≥ 1 and < 100, got 100"),
        ("share", 0.0, "share: must be > 0 and ≤ 1, got 0"),
        ("share", 1.5, "share: must be > 0 and ≤ 1, got 1.5"),
        ("share", math.nan, "share: must be > 0 and ≤ 1, got nan"),
        ("kind", "aple", "kind: 'aple' is not one of apple, cherry; did you mean apple?"),
        ("kind", "fish", "kind: 'fish' is not one of apple, cherry"),
        ("sides", ["ice", "creme"], "sides: 'creme' is not one of cream, ice; did you mean cream?"),
    ],
)
def test_a_value_outside_its_choices_or_range_is_one_line(name: str, value: Any, message: str) -> None:
    pie = Pie()
    setattr(pie, name, value)
    with pytest.raises(ConfigError) as caught:
        check(pie)
    assert (str(caught.value), caught.value.option) == (message, name)


def test_what_is_inside_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"^pie\.inner\.rate: must be > 0, got -1$"):
        check(Pie(inner=Inner(-1.0)), "pie.")
    with pytest.raises(ConfigError, match=r"^inner\.rate: must be > 0, got inf$"):
        check(Pie(inner=Inner(math.inf)))


def test_what_is_inside_is_accepted() -> None:
    for pie in (Pie(), Pie(count=1, share=1.0), Pie(count=99, kind="cherry", sides=["ice", "cream"], hot=False)):
        check(pie)


def test_choices_are_asked_for_when_they_are_needed() -> None:
    known = ["apple"]

    @dataclass
    class Late:
        kind: str = option("plum", "which", choices=lambda: known)

    with pytest.raises(ConfigError):
        check(Late())
    known.append("plum")
    check(Late())


def test_walking_gives_dotted_names() -> None:
    assert [(each.name, each.value) for each in walk(Pie(), "pie.")][-2:] == [
        ("pie.run", None),
        ("pie.inner.rate", 1e-3),
    ]
    assert flatten({"a": 1, "b": {"c": {"d": [2]}, "e": {}}}) == {"a": 1, "b.c.d": [2]}


def test_suggestions() -> None:
    assert suggest("rasgn", ["sgan", "rasgan"]) == "; did you mean rasgan?"
    assert suggest("train.log_evry", ["train.log_every", "metrics.every"]) == "; did you mean train.log_every?"
    assert suggest("x", ["sgan", "rasgan"]) == ""
    # By meaning where that is no likeness: of letters, gpu is nearest to cpu.
    assert suggest("GPU", ["auto", "cpu", "cuda"]) == "; did you mean cuda?"
    assert suggest("fp16", ["auto", "fp32", "bf16"]) == "; did you mean bf16?"
    assert suggest("gpu", ["cpu", "mps"]) == "; did you mean cpu?"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", []),
        ("a", ["a"]),
        (" a , b ", ["a", "b"]),
        ("a,", ["a", ""]),
        ("'a,b',\"c'd,e\",f", ["'a,b'", '"c\'d,e"', "f"]),
        ("it's,a 'b'", ["it's", "a 'b'"]),
    ],
)
def test_commas_outside_of_quotes_separate(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_a_path_with_a_comma_is_one_value(tmp_path: Path) -> None:
    path = tmp_path / "a,b.py"
    assert len(split_list(str(path))) == 2
    path.touch()
    assert split_list(str(path)) == [str(path)]
    assert split_list(f"['{path}',c]") == [f"'{path}'", "c"]


# --- read ---


def test_words_become_typed_values() -> None:
    pie = read_pie("count=3", "share=5e-1", "kind=cherry", "sides=[ice,cream]", "hot=false", "run=null.zip")
    assert pie == Pie(count=3, share=0.5, kind="cherry", sides=["ice", "cream"], hot=False, run="null.zip")
    assert type(pie.sides) is list
    assert read_pie() == Pie()
    assert read_pie("share=null").share is None
    assert read_pie("run=null").run is None
    assert read_pie("sides=ice").sides == read_pie("sides='ice'").sides == ["ice"]
    assert read_pie("sides=ice,cream").sides == ["ice", "cream"]
    # A path is taken as it is typed, without the quotes that Hydra would have needed.
    assert read_pie("run=a=b: [c]").run == read_pie("run='a=b: [c]'").run == "a=b: [c]"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("count=many", "count: 'many' is not a whole number"),
        ("share=much", "share: 'much' is not a number"),
        ("hot=lukewarm", "hot: 'lukewarm' is not true or false"),
        ("sides=fish", "sides: 'fish' is not one of cream, ice"),
        ("run=", "run: is empty; null: not set"),
        ("count=0", "count: must be ≥ 1 and < 100, got 0"),
        ("cuont=3", "cuont: no such option; did you mean count?"),
        ("x=3", "x: no such option; there are count, share, kind, sides, hot, run, inner"),
        ("x", "x: no such option; there are count, share, kind, sides, hot, run, inner"),
    ],
)
def test_words_that_cannot_be_read_are_one_line(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_pie(word)
    assert str(caught.value) == message
    assert caught.value.option == word.partition("=")[0]


@pytest.mark.parametrize("word", ["sides=[ice", "sides={", "count=[", "hot=: :"])
def test_what_yaml_cannot_read_is_one_line(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{word.partition('=')[0]}: ") as caught:
        read_pie(word)
    assert "\n" not in str(caught.value)


def test_one_word_without_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_pie("outputs/a", "count=3", positional="run") == Pie(count=3, run="outputs/a")
    # A path may hold a sign of equality.
    assert read_pie("multirun/x/loss=ragan", positional="run").run == "multirun/x/loss=ragan"
    (tmp_path / "lr=1").mkdir()
    assert read_pie(str(tmp_path / "lr=1"), positional="run").run == str(tmp_path / "lr=1")
    # It may even begin like an option.
    (tmp_path / "count=1-0123abcd").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("count=1-0123abcd", "count=1-0123abcd/"):
        assert read_pie(name, "count=3", positional="run") == Pie(count=3, run=name)
    with pytest.raises(ConfigError, match=r"^cuont: no such option; did you mean count\?$"):
        read_pie("cuont=3", positional="run")
    with pytest.raises(ConfigError, match=r"^run: only one is accepted; b is extra$"):
        read_pie("a", "b", positional="run")
    with pytest.raises(ConfigError, match=r"^run: only one is accepted; b is extra$"):
        read_pie("run=a", "b", positional="run")


def test_several_words_without_their_name() -> None:
    assert read_pie("ice", "cream", positional="sides").sides == ["ice", "cream"]
    assert read_pie("sides=[ice]", "cream", positional="sides").sides == ["ice", "cream"]
    with pytest.raises(ConfigError, match=r"^sides: 'creme' is not one of cream, ice"):
        read_pie("creme", positional="sides")


# --- explained ---


def test_the_explanation_has_the_default_the_meaning_the_range_and_the_choices() -> None:
    text = explain(walk(Pie()), {"kind": "of every pie", "inner.rate": " ".join(["word"] * 30)})
    assert [" ".join(line.split()) for line in text.splitlines()][:6] == [
        "count=2 how many; ≥ 1 and < 100",
        "share=null how much; > 0 and ≤ 1",
        "kind=apple which; apple | cherry; of every pie",
        "sides=[] with it; cream | ice",
        "hot=true from the oven",
        "run=null where",
    ]
    assert " ".join(text.split()).endswith(f" inner.rate=0.001 learning rate; > 0;{' word' * 30}")
    assert max(map(len, text.splitlines())) <= HELP_WIDTH


def test_a_long_name_has_a_line_of_its_own() -> None:
    first, second = explain(walk(Inner(), f"{'x' * 30}.")).splitlines()
    assert first == f"  {'x' * 30}.rate=0.001"
    assert second.strip() == "learning rate; > 0"


def test_values_are_shown_as_they_are_typed() -> None:
    values = [None, True, [0.5, 0.999], ["a", "b"], 1e-8, 3, "x"]
    assert [text_of(value) for value in values] == ["null", "true", "[0.5,0.999]", "[a,b]", "1e-08", "3", "x"]


def test_declaring_options_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys, relgan.config, relgan.builtin; sys.exit(bool({'torch', 'hydra', 'omegaconf'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
