"""The schema, and every file of conf/ against it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from relgan.builtin import ZeroCenteredOptions
from relgan.cli.command import Line, user_errors
from relgan.cli.compose import choices, compose, conf_dir, explain_config
from relgan.config import Config, as_values, resolve, validate
from relgan.losses import build_loss
from relgan.networks import build_networks
from relgan.options import ConfigError, RelganError, check, flatten, text_of, walk
from relgan.penalties import build_penalty
from relgan.registry import GROUPS
from relgan.training.optimizers import build_optimizers
from relgan.training.update import pack

CONF = conf_dir()
REGISTERED = [
    *((group, name) for group, registry in GROUPS.items() for name in registry),
    *((group, path.stem) for group in ("optimizer", "metrics") for path in sorted((CONF / group).glob("*.yaml"))),
]
# What the file's own name stands for inside it, where it is not the name itself.
CALLED = {"adam_wgan": "adam", "adam_fast": "adam"}
BROUGHT = {"wgan": "clip", "wgan_gp": "gp", "rsgan_gp": "gp", "rasgan_gp": "gp", "rpgan_r1r2": "r1r2"}


def composed(*words: str) -> Config:
    return compose(Line(list(words)))


def test_the_schema_is_what_runs_without_arguments() -> None:
    """But for what the data set asks of the network and its training."""
    assert Config() == resolve({})
    assert composed() == resolve(
        {
            "model": {"latent_dim": 22, "latent": "bernoulli"},
            "optimizer": {"lr_g": 3e-3, "lr_d": 3e-3},
            "train": {"iterations": 4800, "redraw_real": False, "redraw_fake": False},
        }
    )
    assert composed("model=r3gan").optimizer == composed("dataset=digits").optimizer == Config().optimizer


@pytest.mark.parametrize(
    "values", [{"precision": "tf32", "penalty": {"name": "ar1r2"}}, {"augment": {"name": "ada", "target": None}}]
)
def test_what_is_no_longer_trained_can_still_be_read(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        resolve(values)
    assert resolve(values, to_train=False).precision in {"auto", "tf32"}
    with pytest.raises(ConfigError, match=r"^seed: must be ≥ 0"):
        resolve({"seed": -1}, to_train=False)


@pytest.mark.parametrize(
    ("words", "dims", "latent"),
    [
        ([], 22, "bernoulli"),
        (["scale=minutes"], 22, "bernoulli"),
        (["dataset=digits"], 128, "normal"),
        (["model=r3gan"], 64, None),
        (["model.latent_dim=7"], 7, "bernoulli"),
        (["model.latent=normal"], 22, "normal"),
        (["experiment=relativism"], 128, "normal"),
        (["experiment=gamma_pilot"], 20, "normal"),
    ],
)
def test_stacked_digits_ask_a_dcgan_for_a_few_signs(words: list[str], dims: int, latent: str | None) -> None:
    model = composed(*words).model
    assert (model.latent_dim, getattr(model, "latent", None)) == (dims, latent)


@pytest.mark.parametrize(("group", "name"), REGISTERED, ids="=".join)
def test_every_choice_composes_and_builds(group: str, name: str) -> None:
    sized = ["dataset.image_size=32"] if name == "cnn32" else []
    config = composed(f"{group}={name}", *sized)
    assert getattr(config, group).name == CALLED.get(name, name)
    if group in GROUPS and name != "dcgan":  # of which the default data set asks something
        assert getattr(config, group) == GROUPS[group][name].options
    if group == "loss":
        assert config.penalty.name == BROUGHT.get(name, "none")
    small = dataclasses.replace(config.model, width=2, latent_dim=4)  # type: ignore[call-arg]
    torch.manual_seed(0)
    generator, critic = build_networks(small, config.dataset.image_size, 3)
    build_optimizers(config.optimizer, generator, critic)
    loss, penalty = build_loss(config.loss), build_penalty(config.penalty)
    fake = generator(torch.randn(4, 4))
    real = torch.rand_like(fake) * 2 - 1
    k = getattr(config.model, "pack", 1)
    real, fake = pack(real, k), pack(fake, k)
    value = loss.discriminator(critic(real), critic(fake)) + penalty(critic, real, fake)
    assert value.isfinite()
    value.backward()


def test_every_choice_of_every_group_is_known() -> None:
    known = choices(None)
    assert all(known[group] == list(registry) for group, registry in GROUPS.items())
    assert set(known["optimizer"]) == {"adam", "adam_fast", "adam_wgan", "rmsprop"}
    assert set(known["tracker"]) == {"wandb", "tensorboard", "mlflow", "none"}
    assert set(known["model"]) == {"dcgan", "cnn32", "r3gan"}


def given(path: Path) -> dict[str, Any]:
    """The values of a file of conf/, by dotted name in the whole configuration."""
    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text) or {}
    values.pop("defaults", None)
    return flatten(values if text.startswith("# @package _global_") else {path.parent.name: values})


@pytest.mark.parametrize(
    "path",
    [path for group in (*GROUPS, "optimizer", "metrics") for path in sorted((CONF / group).glob("*.yaml"))],
    ids=lambda path: f"{path.parent.name}={path.stem}",
)
def test_no_file_repeats_a_value_that_it_refines(path: Path) -> None:
    """So that conf/ holds only what differs from the schema."""
    group = path.parent.name
    options = {group: GROUPS[group][path.stem].options} if group in GROUPS else {}
    schema = {each.name: each.value for each in walk(dataclasses.replace(Config(), **options))}
    for option, value in given(path).items():
        assert value != schema[option], option


def test_files_that_say_nothing_are_not_there() -> None:
    """A part that was registered needs no file."""
    for group in GROUPS:
        for path in (CONF / group).glob("*.yaml"):
            assert yaml.safe_load(path.read_text(encoding="utf-8")), path


def test_a_loss_brings_its_penalty_and_the_command_line_has_the_last_word() -> None:
    def penalty(*words: str) -> Any:
        return composed(*words).penalty

    assert penalty("loss=wgan").weight == 0.01
    assert penalty("loss=wgan_gp", "penalty=none").name == "none"
    assert penalty("penalty=r1", "loss=wgan_gp").name == "r1"
    assert penalty("loss=wgan_gp", "penalty.weight=3").weight == 3


def test_clipping_takes_spectral_norm_away() -> None:
    assert vars(composed("penalty=clip").model)["spectral_norm"] is False
    with pytest.raises(ConfigError, match=r"^model\.spectral_norm: must be false with penalty=clip"):
        composed("penalty=clip", "model.spectral_norm=true")


def test_the_digits_bring_a_faster_optimizer() -> None:
    assert composed("dataset=digits").optimizer.lr_g == 1e-3
    assert composed("dataset=stacked_digits").optimizer.lr_g == 3e-3
    assert composed("dataset=stacked_digits", "optimizer=adam").optimizer.lr_g == 2e-4
    assert composed("dataset=cifar10").optimizer.lr_g == 2e-4
    assert composed("dataset=digits", "optimizer=adam").optimizer.lr_g == 2e-4
    assert composed("dataset=digits", "optimizer.lr_g=3e-4").optimizer.lr_g == 3e-4


def test_the_published_optimizers() -> None:
    def settings(name: str) -> tuple[Any, ...]:
        chosen = composed(f"optimizer={name}").optimizer
        return chosen.name, chosen.lr_g, chosen.lr_d, chosen.betas, chosen.n_critic, chosen.decay

    assert settings("adam") == ("adam", 2e-4, 2e-4, [0.5, 0.999], 1, 0)
    assert settings("adam_wgan") == ("adam", 1e-4, 1e-4, [0.5, 0.9], 5, 0)
    name, lr_g, lr_d, betas, n_critic, decay = settings("rmsprop")
    assert (name, lr_g, lr_d, betas[1], n_critic, decay) == ("rmsprop", 5e-5, 5e-5, 0.99, 5, 0)


def test_plain_objects_come_out() -> None:
    config = composed("optimizer.betas=[0.0,0.9]", "name=run")
    for each in walk(config):
        assert each.value is None or type(each.value) in (str, int, float, bool, list)
    assert config.optimizer.betas == [0.0, 0.9]
    assert type(config.optimizer.betas) is list


def test_every_option_says_what_it_is() -> None:
    for registry in GROUPS.values():
        for entry in registry.values():
            check(entry.options)
            for each in walk(entry.options):
                assert each.name == "name" or each.meta["doc"], f"{entry.name}: {each.name}"
    for each in walk(Config()):
        assert each.name.endswith(".name") or each.meta["doc"], each.name
    validate(Config())


@pytest.fixture(scope="module")
def shown() -> str:
    return explain_config(None)


def test_the_help_has_every_group_with_every_choice(shown: str) -> None:
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.startswith("  ")}
    text = shown.partition("Options, KEY=VALUE")[0].split()
    for group, names in choices(None).items():
        assert group in lines
        assert set(names) < set(text), group
    assert {"loss", "experiment", "scale", "hydra/launcher", "hydra/sweeper"} < lines.keys()
    assert not any(group.startswith("experiment/") for group in lines)


def test_the_help_has_every_option_of_every_part_with_its_default(shown: str) -> None:
    starts = {line.split()[0] for line in shown.partition("Options, KEY=VALUE")[2].splitlines() if "=" in line}
    names = {start.partition("=")[0] for start in starts}
    for each in walk(Config()):
        if each.name not in {f"{group}.name" for group in GROUPS}:
            assert f"{each.name}={text_of(each.value)}" in starts
    for group, registry in GROUPS.items():
        for entry in registry.values():
            assert {each.name for each in walk(entry.options, f"{group}.")} - {f"{group}.name"} <= names, entry.name
    for each in walk(Config()):
        if each.name.partition(".")[0] not in GROUPS:
            assert all(str(choice) in shown for choice in each.choices or ()), each.name


COMMON_KEYS = """
name seed device precision engine resume plugins train.iterations train.epochs train.batch_size train.accumulate
train.log_every
train.sample_every train.checkpoint_every train.ema_decay optimizer.lr_g optimizer.lr_d optimizer.betas
optimizer.n_critic model.width model.latent_dim model.spectral_norm model.generator_spectral_norm model.pack
dataset.path dataset.image_size dataset.sampling metrics.scores metrics.every metrics.num_images metrics.extractor
metrics.weights metrics.lpips_weights metrics.generator metrics.generator_mode
"""


def test_the_common_keys_exist_and_are_in_the_help(shown: str) -> None:
    known = {each.name for each in walk(Config())}
    for key in COMMON_KEYS.split():
        assert key in known
        assert f"\n  {key}=" in shown, f"{key} is missing from --help"


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("train.batch_size", 1, "≥ 2"),
        ("train.batch_size", -64, "≥ 2"),
        ("train.iterations", -1, "≥ 0"),
        ("train.ema_decay", 1.0, "≥ 0 and < 1"),
        ("train.log_every", 0, "≥ 1"),
        ("optimizer.lr_g", 0.0, "> 0"),
        ("optimizer.lr_d", float("nan"), "> 0"),
        ("optimizer.lr_d", float("inf"), "> 0"),
        ("optimizer.n_critic", 0, "≥ 1"),
        ("optimizer.decay", 1.0, "≥ 0 and < 1"),
        ("optimizer.betas", [0.5], "two numbers"),
        ("optimizer.betas", [0.5, 1.0], "≥ 0 and < 1"),
        ("dataset.image_size", 48, "32, 64, 128, 256"),
        ("dataset.sampling", "random", "epoch, independent"),
        ("dataset.num_images", 0, "≥ 1"),
        ("model.pack", 0, "≥ 1"),
        ("model.name", "resnet", "dcgan, cnn32"),
        ("loss.name", "gan", "ragan"),
        ("metrics.scores", ["fid", "msssim"], "fid, is, kid"),
        ("device", "tpu", "auto, cpu, cuda, mps"),
        ("seed", -1, "≥ 0"),
    ],
)
def test_a_value_outside_its_range_is_named_with_what_is_accepted(option: str, value: Any, accepted: str) -> None:
    nested: Any = value
    for key in reversed(option.split(".")):
        nested = {key: nested}
    with pytest.raises(ConfigError) as caught:
        resolve(nested)
    assert caught.value.option == option
    assert str(caught.value).startswith(f"{option}: ")
    assert accepted in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"train": {"iterations": None}}, "train.iterations"),
        ({"train": {"epochs": 2.0}}, "train.iterations"),
        ({"model": {"name": "cnn32"}, "dataset": {"image_size": 64}}, "dataset.image_size"),
        ({"model": {"pack": 3}}, "train.batch_size"),
        ({"penalty": {"name": "gp", "weight": 0.0}}, "penalty.weight"),
        ({"penalty": {"name": "gp", "weight": -1.0}}, "penalty.weight"),
        ({"penalty": {"name": "clip"}}, "model.spectral_norm"),
        ({"penalty": {"name": "none", "weight": 1.0}}, "penalty.weight"),
        ({"loss": {"name": "rsgan", "generator_terms": "fake"}}, "loss.generator_terms"),
        ({"loss": {"name": "sgan", "generator_terms": "standard"}}, "loss.generator_terms"),
        ({"loss": {"name": "rasgan", "generator_terms": "neither"}}, "loss.generator_terms"),
        ({"augment": {"name": "diffaugment", "policy": []}}, "augment.policy"),
        ({"augment": {"name": "diffaugment", "ramp": 1000}}, "augment.ramp"),
        ({"augment": {"name": "ada", "target": None}}, "augment.p"),
        ({"augment": {"name": "diffaugment", "p": 0.0}}, "augment.p"),
        ({"precision": "tf32", "penalty": {"name": "ar1r2"}}, "precision"),
        ({"augment": {"name": "ada", "ramp": 10}, "schedule": {"burn_in": 9, "augment_p": 0.5}}, "augment.ramp"),
        ({"augment": {"name": "ada"}, "dataset": {"name": "digits"}}, "augment"),
        ({"augment": {"name": "ada"}, "dataset": {"name": "fashion_mnist"}}, "augment"),
        ({"train": {"redraw_fake": False}, "dataset": {"name": "digits", "labels": True}}, "train.redraw_fake"),
        ({"tracker": {"name": "none", "project": "p"}}, "tracker.project"),
        ({"train": {"iterations": "many"}}, "train.iterations"),
        ({"train": {"log_evry": 5}}, "train.log_evry"),
        ({"trian": {"log_every": 5}}, "trian.log_every"),
        ({"epochs": 5}, "epochs"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_named(values: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(values)
    assert caught.value.option == option
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "a b/c=1", "größe, (1)", "x" * 255, None])
def test_a_name_may_be_any_folders(name: str | None) -> None:
    assert resolve({"name": name}).name == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty; null: not set"),
        (".", "'.' is no folder's name"),
        ("../other", "'../other' leads outside of outputs/"),
        ("/tmp/x", "'/tmp/x' leads outside of outputs/"),
        ("two\nlines", r"'two\nlines' holds a control character"),
        ("ä" * 128, "longer than 255 bytes"),
    ],
)
def test_a_name_that_no_folder_can_have_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=r"^name: ") as caught:
        resolve({"name": name})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", ["stacked_digits", "stacked_mnist", "folder", "cifar10"])
def test_ada_takes_colours(dataset: str) -> None:
    config = resolve({"augment": {"name": "ada", "ramp": 1000}, "dataset": {"name": dataset}})
    assert (config.augment.p, config.augment.target, config.augment.ramp) == (0.0, 0.6, 1000)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("log_evry: 5", "train.log_evry: no such option; did you mean train.log_every?"),
        ("log_every: words not in it", "train.log_every: Value 'words not in it' of type 'str' could not be "),
    ],
)
def test_a_mistake_in_a_file_of_ones_own_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\ntrain:\n  {line}\n", encoding="utf-8")
    with pytest.raises(RelganError) as caught, user_errors():
        compose(Line(["experiment=mine"], tmp_path))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train": {"log_evry": 5}}, "train.log_evry: no such option; did you mean train.log_every?"),
        ({"sed": 5}, "sed: no such option; did you mean seed?"),
        (
            {"penalty": {"weight": 5}},
            "penalty.weight: no such option with this penalty; these have it: gp, r1, r2, r1r2, ar1, ar2, ar1r2, "
            "dragan, clip",
        ),
        ({"loss": {"name": "ragn"}}, "did you mean ragan?"),
    ],
    ids=str,
)
def test_what_was_probably_meant_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(values)
    assert str(caught.value).endswith(said)


def test_a_group_has_the_options_of_its_choice() -> None:
    config = resolve({"penalty": {"name": "r1", "weight": 3}, "tracker": {"name": "none"}, "loss": {"name": "sgan"}})
    assert config.penalty == ZeroCenteredOptions("r1", 3.0)
    assert vars(config.loss) == {"name": "sgan", "centring": 0.0, "lecam": 0.0}
    assert vars(config.tracker) == {"name": "none", "also": []}
    assert resolve(as_values(config)) == config


def test_a_stored_configuration_is_checked_like_a_composed_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(as_values(resolve({"dataset": {"image_size": 64}}))), encoding="utf-8")
    stored = OmegaConf.load(path)
    config = resolve(stored)
    assert config.dataset == dataclasses.replace(GROUPS["dataset"]["stacked_digits"].options, image_size=64)
    stored.dataset.image_size = 48
    with pytest.raises(ConfigError, match="48 is not one of"):
        resolve(stored)
