"""The schema, and every file of conf/ against it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from relgan.cli import app
from relgan.config import (
    DATASET_NAMES,
    LOSS_NAMES,
    PENALTY_NAMES,
    TWO_TERM_LOSSES,
    Config,
    ConfigError,
    DatasetConfig,
    validate,
    walk,
)
from relgan.losses import LOSSES, get_loss
from relgan.networks import build_networks
from relgan.networks.blocks import pack
from relgan.penalties import build_penalty
from relgan.training.schedule import build_optimizers, build_schedule

CONF = app.conf_dir()
FILES = [
    pytest.param(path.parent.name, path.stem, id=f"{path.parent.name}={path.stem}")
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name != "hydra"
]
# What the file's own name stands for inside it, where it is not the name itself.
CALLED = {"adam_wgan": "adam", "adam_fast": "adam"}
GROUPS = ("model", "loss", "penalty", "dataset", "optimizer", "metrics", "tracker")


@pytest.fixture(scope="module")
def conf() -> Iterator[None]:
    app.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def compose(*overrides: str) -> Config:
    return app.to_config(hydra.compose("config", list(overrides)))


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_file_composes_and_builds(group: str, name: str) -> None:
    config = compose(f"{group}={name}")
    if group in GROUPS:
        assert getattr(config, group).name == CALLED.get(name, name)
    if group == "loss":
        assert config.penalty.name == LOSSES[name].penalty
    small = dataclasses.replace(config.model, width=2, latent_dim=4)
    torch.manual_seed(0)
    generator, critic = build_networks(small, config.dataset.image_size, 3)
    optimizers = build_optimizers(config.optimizer, generator, critic)
    for optimizer in optimizers:
        build_schedule(config.optimizer, optimizer)
    loss = get_loss(config.loss.name, config.loss.generator_terms)
    penalty = build_penalty(config.penalty)
    assert (penalty is None) == (config.penalty.name == "none")
    fake = generator(torch.randn(4, 4))
    real = torch.rand_like(fake) * 2 - 1
    real, fake = pack(real, config.model.pack), pack(fake, config.model.pack)
    value = loss.discriminator(critic(real), critic(fake))
    if penalty is not None:
        value = value + penalty(critic, real, fake)
    assert value.isfinite()
    value.backward()


def test_every_group_has_a_file_for_every_name() -> None:
    def stems(group: str) -> set[str]:
        return {path.stem for path in (CONF / group).glob("*.yaml")}

    assert stems("loss") == set(LOSS_NAMES) == set(LOSSES)
    assert stems("penalty") == set(PENALTY_NAMES)
    assert stems("dataset") == set(DATASET_NAMES)
    assert stems("model") == {"dcgan", "cnn32"}
    assert stems("tracker") == {"wandb", "none"}
    assert stems("optimizer") == {"adam", "adam_fast", "adam_wgan", "rmsprop"}


@pytest.mark.parametrize("group", GROUPS)
def test_a_file_gives_every_value_of_its_group(group: str) -> None:
    """Otherwise a choice would depend on what the schema happens to default to."""
    options = {field.name for field in dataclasses.fields(getattr(Config(), group))}
    for path in (CONF / group).glob("*.yaml"):
        given = OmegaConf.load(path)
        # A file of the global package names its group, and may change another one with it (weight clipping).
        own = given[group] if path.read_text().startswith("# @package _global_") else given
        assert set(own) - {"defaults"} == options, path.name


@pytest.mark.usefixtures("conf")
def test_a_loss_brings_its_penalty_and_the_command_line_has_the_last_word() -> None:
    assert compose("loss=wgan").penalty.weight == 0.01
    assert compose("loss=wgan_gp", "penalty=none").penalty.name == "none"
    assert compose("penalty=r1", "loss=wgan_gp").penalty.name == "r1"
    assert compose("loss=wgan_gp", "penalty.weight=3").penalty.weight == 3


@pytest.mark.usefixtures("conf")
def test_the_published_optimizers() -> None:
    def settings(name: str) -> tuple[Any, ...]:
        chosen = compose(f"optimizer={name}").optimizer
        return chosen.name, chosen.lr_g, chosen.lr_d, chosen.betas, chosen.n_critic, chosen.decay

    assert settings("adam") == ("adam", 2e-4, 2e-4, [0.5, 0.999], 1, 0)
    assert settings("adam_wgan") == ("adam", 1e-4, 1e-4, [0.5, 0.9], 5, 0)
    name, lr_g, lr_d, betas, n_critic, decay = settings("rmsprop")
    assert (name, lr_g, lr_d, betas[1], n_critic, decay) == ("rmsprop", 5e-5, 5e-5, 0.99, 5, 0)


@pytest.mark.usefixtures("conf")
def test_plain_objects_come_out() -> None:
    config = compose("optimizer.betas=[0.0,0.9]", "name=run")
    for _, value, _ in walk(config):
        assert value is None or type(value) in (str, int, float, bool, list)
    assert config.optimizer.betas == [0.0, 0.9]
    assert type(config.optimizer.betas) is list


def test_every_option_says_what_it_is() -> None:
    for option, value, meta in walk(Config()):
        assert meta["doc"], option
        if meta["choices"] is not None:
            assert value in meta["choices"], option
    validate(Config())


@pytest.mark.usefixtures("conf")
def test_the_help_does_not_lie() -> None:
    """Keys exist, choices are those accepted, defaults are those composed."""
    text = (CONF / "hydra" / "help" / "relgan.yaml").read_text(encoding="utf-8")
    text = text.partition("Common keys")[2].partition("${hydra.help.footer}")[0]
    known = {option: (value, meta) for option, value, meta in walk(compose())}
    gp = compose("penalty=gp")
    keys = re.findall(r"(?<![\w.])([a-z_]+(?:\.[a-z_]+)?)=(\S+)", text)
    assert len(keys) > 30
    for key, shown in keys:
        value, meta = known[key]
        if key in ("train.epochs", "name") or shown in ("PATH", "FILE", "null", "null|auto|PATH"):
            continue
        if "|" in shown:
            assert shown == "|".join(map(str, meta["choices"])), key
        elif key == "penalty.weight":
            assert float(shown) == gp.penalty.weight
        else:
            expected = OmegaConf.create({"x": shown}).x if not shown[0].isalpha() else shown
            parsed = OmegaConf.from_dotlist([f"x={expected}"]).x
            assert parsed == value, key


COMMON_KEYS = """
name seed device precision engine resume train.iterations train.epochs train.batch_size train.log_every
train.sample_every train.checkpoint_every train.ema_decay optimizer.lr_g optimizer.lr_d optimizer.betas
optimizer.n_critic model.width model.latent_dim model.spectral_norm model.generator_spectral_norm model.pack
dataset.path dataset.image_size dataset.sampling metrics.scores metrics.every metrics.num_images metrics.extractor
metrics.weights metrics.lpips_weights metrics.generator metrics.generator_mode
"""


def test_the_common_keys_exist_and_are_in_the_help() -> None:
    known = {option for option, _, _ in walk(Config())}
    text = (CONF / "hydra" / "help" / "relgan.yaml").read_text(encoding="utf-8")
    for key in COMMON_KEYS.split():
        assert key in known
        assert re.search(rf"(?<![\w.]){re.escape(key)}=", text), f"{key} is missing from --help"


def changed(option: str, value: Any) -> Config:
    config = Config()
    *groups, name = option.split(".")
    target: Any = config
    for group in groups:
        target = getattr(target, group)
    setattr(target, name, value)
    return config


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
        ("optimizer.betas", [0.5, 1.0], "two numbers in [0, 1)"),
        ("penalty.weight", -1.0, "≥ 0"),
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
    with pytest.raises(ConfigError) as caught:
        validate(changed(option, value))
    assert caught.value.option == option
    assert str(caught.value).startswith(f"{option}: ")
    assert accepted in str(caught.value)
    assert "\n" not in str(caught.value)


def combine(**changes: Any) -> Config:
    config = Config()
    for group, values in changes.items():
        setattr(config, group, dataclasses.replace(getattr(config, group), **values))
    return config


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (combine(train={"iterations": None}), "train.iterations"),
        (combine(train={"epochs": 2.0}), "train.iterations"),
        (combine(model={"name": "cnn32"}, dataset={"image_size": 64}), "dataset.image_size"),
        (combine(model={"pack": 3}), "train.batch_size"),
        (combine(penalty={"name": "gp"}), "penalty.weight"),
        (combine(loss={"name": "rsgan", "generator_terms": "fake"}), "loss.generator_terms"),
        (combine(loss={"name": "sgan", "generator_terms": "standard"}), "loss.generator_terms"),
    ],
)
def test_an_impossible_combination_is_named(config: Config, option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert caught.value.option == option
    assert "\n" not in str(caught.value)


def test_the_schema_and_the_losses_agree_on_generator_terms() -> None:
    for name in LOSS_NAMES:
        config = combine(loss={"name": name, "generator_terms": "fake"})
        if name in TWO_TERM_LOSSES:
            validate(config)
            get_loss(name, "fake")
        else:
            with pytest.raises(ConfigError):
                validate(config)
            with pytest.raises(ConfigError):
                get_loss(name, "fake")


def test_a_stored_configuration_is_checked_like_a_composed_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(combine(dataset={"image_size": 64}))), encoding="utf-8")
    stored = OmegaConf.load(path)
    config = app.to_config(stored)  # type: ignore[arg-type]
    assert config.dataset == DatasetConfig(image_size=64)
    stored.dataset.image_size = 48
    with pytest.raises(ConfigError, match="48 is not one of"):
        app.to_config(stored)  # type: ignore[arg-type]
