"""conf/experiment against the published settings, written down here on their own."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import processes
import tiny
from relgan.build import build_run
from relgan.builtin import AdaOptions, R3GANOptions, ZeroCenteredOptions
from relgan.cli.command import Line, user_errors
from relgan.cli.compose import compose, conf_dir
from relgan.config import Config, OptimizerConfig, ScheduleConfig
from relgan.options import RelganError
from relgan.registry import DATASETS, LOSSES, PENALTIES, AugmentOptions
from relgan.training.loop import Outcome, train

CONF = conf_dir()


class Setup(NamedTuple):
    """One line of the published tables."""

    dataset: str
    size: int
    lr: float
    betas: tuple[float, float]
    n_critic: int
    network: str
    width: int
    spectral_norm: bool
    losses: str
    name: str | None = None
    batch: int = 32
    norm: str = "batch"
    activation: str = "default"
    pack: int = 1
    fid_every: int = 10_000
    fid_images: int = 50_000


EIGHT = "sgan lsgan wgan_gp hinge rsgan rasgan ralsgan rahinge"
DCGAN = (2e-4, (0.5, 0.999), 1, "dcgan")
PUBLISHED = {
    "cifar10_stable_a": Setup(
        *("cifar10", 32, 2e-4, (0.5, 0.999), 1, "cnn32", 64, True),
        losses=f"{EIGHT} rsgan_gp rasgan_gp",
        fid_every=50_000,
    ),
    "cifar10_stable_b": Setup(
        *("cifar10", 32, 1e-4, (0.5, 0.9), 5, "cnn32", 64, True), losses=f"{EIGHT} rsgan_gp", fid_every=50_000
    ),
    "cifar10_unstable_lr": Setup("cifar10", 32, 1e-3, (0.5, 0.999), 1, "cnn32", 64, False, EIGHT),
    "cifar10_unstable_betas": Setup("cifar10", 32, 1e-4, (0.9, 0.9), 1, "cnn32", 64, False, EIGHT),
    "cifar10_unstable_nobn": Setup("cifar10", 32, 1e-4, (0.5, 0.999), 1, "cnn32", 64, False, EIGHT, norm="none"),
    "cifar10_unstable_tanh": Setup("cifar10", 32, 1e-4, (0.5, 0.999), 1, "cnn32", 64, False, EIGHT, activation="tanh"),
    "cat64": Setup(
        *("cat", 64, *DCGAN, 64, False),
        losses="hinge rsgan rasgan ralsgan rahinge rsgan_gp rasgan_gp",
        fid_images=10_000,
    ),
    "cat64_batch64": Setup("cat", 64, *DCGAN, 64, False, "sgan lsgan", "cat64", batch=64, fid_images=10_000),
    "cat128": Setup("cat", 128, *DCGAN, 64, False, "sgan lsgan rsgan rasgan ralsgan", fid_images=10_000),
    "cat256": Setup("cat", 256, *DCGAN, 32, False, "sgan lsgan wgan_gp rsgan rasgan ralsgan", pack=2, fid_images=2_000),
    "cat256_sn": Setup("cat", 256, *DCGAN, 32, True, "sgan", "cat256", pack=2, fid_images=2_000),
}


class Preset(NamedTuple):
    """One column of R3GAN's table; counts of images are in millions."""

    dataset: str
    size: int
    labels: bool
    widths: list[int]  # from 4×4
    groups: list[int]
    gamma: tuple[float, float]
    p: float
    half_life: float
    burn_in: float
    total: float
    batch: int


R3GAN = {
    "r3gan_stacked": Preset("stacked_mnist", 32, False, [768] * 4, [96] * 4, (1, 0.1), 0, 0.5, 2, 10, 512),
    "r3gan_cifar10": Preset("cifar10", 32, True, [768] * 4, [96] * 4, (0.05, 0.005), 0.55, 5, 20, 250, 512),
    "r3gan_64": Preset("folder", 64, False, [768] * 4 + [384], [96] * 4 + [48], (2, 0.2), 0.3, 0.5, 20, 100, 256),
    "r3gan_256": Preset(
        *("folder", 256, False, [768] * 4 + [384, 192, 96], [96] * 4 + [48, 24, 12], (150, 15), 0.3, 0.5, 20),
        total=100,  # not published
        batch=256,
    ),
    "r3gan_imagenet32": Preset("folder", 32, True, [1536] * 4, [96] * 4, (0.5, 0.05), 0.5, 50, 200, 1000, 4096),
    "r3gan_imagenet64": Preset("folder", 64, True, [1536] * 5, [96] * 5, (1, 0.1), 0.4, 50, 200, 1000, 4096),
}
OTHERS = {"celeba64", "gamma_pilot", "generator_terms", "relativism", "stacked"}
EXPERIMENTS = [*PUBLISHED, *R3GAN, *sorted(OTHERS)]
ON_DIGITS = {"gamma_pilot", "r3gan_stacked", "relativism", "stacked"}
GRADIENT_PENALTY = {"wgan_gp", "rsgan_gp", "rasgan_gp"}


def composed(*words: str) -> Config:
    return compose(Line(list(words)))


def hydra_part(experiment: str) -> Any:
    """What an experiment's file, or the shared part that it begins with, says of Hydra."""
    content = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
    if "hydra" in content:
        return content["hydra"]
    (shared,) = (entry for entry in content["defaults"] if isinstance(entry, str) and entry != "_self_")
    return hydra_part(shared)


def swept(experiment: str) -> dict[str, Any]:
    """The values that -m runs it over; without -m they change nothing, so the file must not ask for it itself."""
    node = hydra_part(experiment)
    assert node.keys() == {"sweeper"}
    assert node["sweeper"].keys() == {"params"}
    return dict(node["sweeper"]["params"])


def test_every_file_is_in_the_tables() -> None:
    assert {path.stem for path in (CONF / "experiment").glob("*.yaml")} == {*PUBLISHED, *R3GAN, *OTHERS}


def test_shared_parts_are_no_experiments() -> None:
    assert {path.stem for path in (CONF / "experiment").glob("*/*.yaml")} == {
        *("cat", "cat256", "cifar10", "cifar10_unstable", "r3gan", "r3gan_augmented")
    }


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_published_numbers(experiment: str) -> None:
    setup = PUBLISHED[experiment]
    config = composed(f"experiment={experiment}")
    data, model, optimizer = config.dataset, config.model, config.optimizer
    train, metrics = config.train, config.metrics
    assert config.name == (setup.name or experiment)
    assert config.seed == 1
    assert (data.name, data.image_size, data.sampling, data.hflip) == (setup.dataset, setup.size, "independent", False)
    assert data.num_images is None
    assert data.split == ("train" if setup.dataset == "cifar10" else "all")
    assert (model.name, model.width, model.latent_dim) == (setup.network, setup.width, 128)
    assert (model.spectral_norm, model.generator_spectral_norm) == (setup.spectral_norm, False)
    assert (model.norm, model.activation, model.pack) == (setup.norm, setup.activation, setup.pack)
    assert model.upsample == "transposed"
    assert config.augment.name == "none"
    assert (optimizer.name, optimizer.lr_g, optimizer.lr_d) == ("adam", setup.lr, setup.lr)
    assert (tuple(optimizer.betas), optimizer.eps, optimizer.decay) == (setup.betas, 1e-8, 0)
    assert optimizer.n_critic == setup.n_critic
    assert (train.iterations, train.epochs, train.batch_size) == (100_000, None, setup.batch)
    assert train.redraw_real
    assert set(metrics.scores) >= {"fid"}
    assert (metrics.every, metrics.num_images, metrics.reference_images) == (setup.fid_every, setup.fid_images, None)
    assert (metrics.extractor, metrics.precision) == ("inception", "fp32")
    assert (metrics.generator, metrics.generator_mode, metrics.batch_size) == ("raw", "train", 100)


ELSEWHERE = [
    *[("cifar10_stable_a", name) for name in ("folder", "celeba", "mnist")],
    *[(name, "cat") for name in PUBLISHED if name.startswith("cifar10")],
    *[(name, "folder") for name in ("cat64", "cat64_batch64", "r3gan_stacked", "celeba64")],
    *[
        (name, "stacked_digits")
        for name in ("cifar10_stable_b", "cat128", "cat256", "cat256_sn", "stacked", "celeba64")
    ],
    *[(name, "cat") for name in R3GAN],
]


@pytest.mark.parametrize("elsewhere", tiny.mostly_slow(ELSEWHERE))
def test_it_trains_the_same_way_on_other_images(elsewhere: tuple[str, str]) -> None:
    experiment, images = elsewhere
    own = composed(f"experiment={experiment}")
    size = f"dataset.image_size={own.dataset.image_size}"
    other = composed(f"experiment={experiment}", f"dataset={images}", size, "dataset.path=photos.zip")
    assert dataclasses.replace(other, dataset=own.dataset) == own
    assert (other.dataset.hflip, other.dataset.sampling) == (own.dataset.hflip, own.dataset.sampling)


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_its_sweep_runs_over_the_published_losses(experiment: str) -> None:
    params = swept(experiment)
    assert set(params) == {"loss"}
    assert params["loss"].split(",") == PUBLISHED[experiment].losses.split()


def test_a_sweep_is_its_experiment_over_losses_with_their_penalties() -> None:
    expected = composed("experiment=cifar10_stable_b")
    assert expected.loss == LOSSES["ragan"].options  # what it sweeps over changes nothing by itself
    for loss in ("lsgan", "wgan_gp", "rsgan_gp"):
        config = composed("experiment=cifar10_stable_b", f"loss={loss}")
        penalty = (config.penalty.name, getattr(config.penalty, "weight", 0.0))
        assert penalty == (("gp", 10.0) if loss in GRADIENT_PENALTY else ("none", 0.0))
        assert config.loss == LOSSES[loss].options
        assert dataclasses.replace(config, loss=expected.loss, penalty=expected.penalty) == expected


@pytest.mark.parametrize("experiment", tiny.mostly_slow([*PUBLISHED, *sorted(OTHERS)]))
def test_hydra_sweeps_over_what_the_file_says(experiment: str) -> None:
    done = processes.run(processes.command("train"), f"experiment={experiment}", "--cfg", "hydra")
    assert yaml.safe_load(done.stdout)["hydra"]["sweeper"]["params"] == swept(experiment)


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([], ("rpgan_r1r2", "r1r2")),
        (["loss=ragan"], ("ragan", "none")),
        (["loss=wgan_gp"], ("wgan_gp", "gp")),
        (["penalty=ar1r2"], ("rpgan_r1r2", "ar1r2")),
        (["scale=minutes"], ("rpgan_r1r2", "r1r2")),
    ],
)
def test_r3gans_networks_bring_the_loss_and_penalty_that_hold_them(words: list[str], chosen: tuple[str, str]) -> None:
    config = composed("model=r3gan", *words)
    assert (config.loss.name, config.penalty.name) == chosen


@pytest.mark.parametrize("experiment", R3GAN)
def test_the_published_numbers_of_r3gan(experiment: str) -> None:
    preset = R3GAN[experiment]
    config = composed(f"experiment={experiment}")
    data, model, optimizer, schedule = config.dataset, config.model, config.optimizer, config.schedule
    train, metrics = config.train, config.metrics
    assert config.name == experiment
    assert (data.name, data.image_size, data.labels) == (preset.dataset, preset.size, preset.labels)
    assert data.hflip == (experiment != "r3gan_stacked")  # digits have no mirror images
    assert data.num_images == (128_000 if experiment == "r3gan_stacked" else None)
    assert data.split == ("all" if data.name == "folder" else "train")
    assert isinstance(model, R3GANOptions)
    widths = model.stage_widths(data.image_size)
    assert (widths, [2 * width // model.group_channels(width) for width in widths]) == (preset.widths, preset.groups)
    assert (model.latent_dim, model.blocks) == (64, 2)
    assert (config.loss.name, config.loss.centring, config.loss.lecam) == ("rsgan", 0, 0)
    first, last = preset.gamma
    assert config.penalty == ZeroCenteredOptions("r1r2", weight=first, interval=1, share=1)
    assert schedule == ScheduleConfig(
        *(preset.burn_in * 1e6, 5e-5, 5e-5, 0.99, last, preset.p or None, preset.half_life * 1e6)
    )
    assert config.augment == (AdaOptions("ada", p=0, target=0.6) if preset.p else AugmentOptions("none"))
    assert optimizer == OptimizerConfig("adam", 2e-4, 2e-4, [0.0, 0.9], 1e-8, n_critic=1, decay=0)
    assert (train.batch_size, train.epochs, train.redraw_real) == (preset.batch, None, True)
    assert train.iterations == round(preset.total * 1e6 / preset.batch)
    assert (metrics.name, metrics.generator) == ("default", "ema")
    assert metrics.every is not None
    assert 18 < train.iterations / metrics.every < 22


def test_what_a_schedule_moves_has_to_be_there() -> None:
    with pytest.raises(RelganError, match=r"^schedule\.augment_p: augment=none has no probability$"):
        composed("experiment=r3gan_cifar10", "augment=none")


@pytest.mark.parametrize("experiment", tiny.mostly_slow(R3GAN))
def test_scale_cpu_is_the_same_recipe_in_proportion(experiment: str) -> None:
    preset = R3GAN[experiment]
    full, small = (composed(f"experiment={experiment}", *words) for words in ((), ("scale=cpu",)))
    assert small.train.iterations is not None
    images = small.train.iterations * small.train.batch_size
    assert images == 200_000
    schedule = small.schedule
    assert schedule.burn_in == pytest.approx(images * preset.burn_in / preset.total)
    assert schedule.ema_half_life == pytest.approx(images * preset.half_life / preset.total)
    for rates in ((small.optimizer.lr_g, schedule.lr_g), (small.optimizer.lr_d, schedule.lr_d)):
        assert rates == (1e-3, 2.5e-4)  # a quarter, like 2e-4 → 5e-5
    size = min(preset.size, 64)
    first, last = R3GAN["r3gan_64"].gamma if preset.size > size else preset.gamma
    of_images = {name: getattr(schedule, name) for name in ("burn_in", "ema_half_life", "lr_g", "lr_d")}
    assert schedule == dataclasses.replace(full.schedule, gamma=last, **of_images)
    assert small.penalty == ZeroCenteredOptions("r1r2", weight=first)
    assert (small.loss, small.augment) == (full.loss, full.augment)
    assert isinstance(small.model, R3GANOptions)
    assert small.dataset.image_size == size
    assert max(small.model.stage_widths(size)) == 32
    assert (small.name, small.metrics.num_images) == (experiment, 1000)


@pytest.mark.parametrize("words", [("experiment=cifar10_stable_a",), ("experiment=celeba64",), ("model=r3gan",), ()])
def test_scale_cpu_makes_anything_200_000_images_long(words: tuple[str, ...]) -> None:
    train = composed(*words, "scale=cpu").train
    assert (train.iterations, train.epochs, train.batch_size) == (3125, None, 64)


@pytest.mark.parametrize(("experiment", "epochs"), [("celeba64", 200), ("generator_terms", 10)])
def test_the_readers_experiments_on_celeba(experiment: str, epochs: int) -> None:
    config = composed(f"experiment={experiment}")
    assert (config.name, config.train.iterations, config.train.epochs) == (experiment, None, epochs)
    assert (config.dataset.name, config.dataset.image_size, config.dataset.num_images) == ("celeba", 64, None)
    assert config.dataset.split == "all"  # 202,599 faces
    assert (config.model.name, config.penalty.name) == ("dcgan", "none")
    assert config.train.sample_every == 0  # grids at 0, ¼, ½, ¾ and the end: epochs 0, 50, 100, 150, 200
    assert (config.optimizer.lr_g, config.train.batch_size) == (2e-4, 128)
    assert (config.model.upsample, config.dataset.hflip) == ("transposed", False)


def test_what_the_readers_experiments_compare() -> None:
    assert swept("celeba64") == {"loss": "sgan,rsgan,ragan,ralsgan"}
    assert swept("generator_terms") == {"loss": "rasgan", "loss.generator_terms": "both,standard,fake"}
    assert {"rpgan_r1r2", "sgan"} < set(swept("stacked")["loss"].split(","))
    stacked = composed("experiment=stacked")
    assert (stacked.dataset.name, stacked.model.name, stacked.loss.name) == ("stacked_mnist", "dcgan", "rpgan_r1r2")
    assert (stacked.penalty.name, stacked.penalty.weight, stacked.model.upsample) == ("r1r2", 1.0, "transposed")
    assert "modes" in stacked.metrics.scores


def test_the_pilot_varies_nothing_but_the_penalty_of_networks_without_normalisation() -> None:
    assert swept("gamma_pilot") == {"penalty.weight": "0.1,1,10,100", "seed": "1,2"}
    pilot = composed("experiment=gamma_pilot")
    assert (pilot.loss.name, pilot.penalty.name, pilot.model.name) == ("rsgan", "r1r2", "dcgan")
    assert (pilot.model.norm, pilot.model.spectral_norm, pilot.model.generator_spectral_norm) == ("none", False, False)
    assert (pilot.dataset, pilot.optimizer.betas) == (composed().dataset, [0, 0.99])
    assert (pilot.optimizer.lr_g, pilot.optimizer.lr_d, pilot.train.iterations) == (1e-3, 1e-3, 2400)


def test_relativism_is_a_shorter_run_of_the_digits_under_27_objectives() -> None:
    assert swept("relativism") == {"loss": "sgan,rsgan,ragan", "penalty": "none,r1,r1r2", "seed": "1,2,3"}
    assert composed("experiment=relativism") == composed(
        *("name=relativism", "model.width=32", "model.latent_dim=128", "model.latent=normal"),
        *("optimizer.lr_g=1e-3", "optimizer.lr_d=1e-3"),  # the schema's
        *("train.iterations=1000", "train.redraw_real=true", "train.redraw_fake=true"),
    )
    for penalty in ("r1", "r1r2"):
        assert composed("experiment=relativism", f"penalty={penalty}").penalty == PENALTIES[penalty].options


def test_the_command_line_has_the_last_word() -> None:
    config = composed("experiment=cat256", "loss=sgan", "dataset=digits", "model=dcgan", "optimizer.lr_g=7e-7")
    assert (config.loss.name, config.dataset.name, config.optimizer.lr_g) == ("sgan", "digits", 7e-7)


@pytest.mark.parametrize("experiment", tiny.mostly_slow(EXPERIMENTS))
def test_smoke_makes_any_of_them_small(experiment: str) -> None:
    small = composed(f"experiment={experiment}", "scale=smoke")
    assert small.train.iterations is not None
    assert small.train.iterations * small.train.batch_size * small.optimizer.n_critic <= 320
    assert max(small.model.width, small.model.latent_dim, small.metrics.num_images) <= 16
    assert small.name == "smoke"  # not among the real runs


@pytest.mark.parametrize("name", tiny.mostly_slow(DATASETS))
def test_minutes_and_an_hour_shrink_every_data_set(name: str) -> None:
    minutes, hour = (composed(f"dataset={name}", f"scale={scale}") for scale in ("minutes", "hour"))
    assert minutes.dataset.image_size == (16 if "digits" in name else 32)
    assert hour.dataset.image_size == (64 if name in {"celeba", "cat", "folder"} else minutes.dataset.image_size)
    assert (minutes.dataset.crop, hour.dataset.crop) == ((0.9, 0.9) if name == "celeba" else (None, None))
    updates = {"stacked_digits": 10_500, "digits": 15_000}.get(name, 5_000)
    longer = 90_000 if "digits" in name else 6 * updates
    assert minutes.train.iterations == updates
    assert hour.train.iterations == (18_000 if hour.dataset.image_size == 64 else longer)
    assert (minutes.model.name, minutes.model.width) == ("dcgan", 64 if name == "stacked_digits" else 48)
    assert (hour.model.name, hour.model.width) == ("dcgan", 32)
    assert minutes.optimizer.lr_g == minutes.optimizer.lr_d == {"celeba": 1e-3, "stacked_digits": 3e-3}.get(name, 5e-4)
    assert hour.optimizer.lr_g == hour.optimizer.lr_d == 5e-4
    assert minutes.optimizer.betas == hour.optimizer.betas == [0.0, 0.99]
    for small, kept in ((minutes, {"celeba", "stacked_digits"}), (hour, {"stacked_digits"})):
        assert small.train.redraw_real == small.train.redraw_fake == (name not in kept)


@pytest.mark.parametrize("scale", ["minutes", "hour"])
@pytest.mark.parametrize("experiment", tiny.mostly_slow(["cifar10_stable_b", "cat256", "celeba64", "stacked"]))
def test_minutes_and_an_hour_make_an_experiment_their_run_of_its_data_set(experiment: str, scale: str) -> None:
    small = composed(f"experiment={experiment}", f"scale={scale}")
    plain = composed(f"dataset={small.dataset.name}", f"scale={scale}")
    assert (small.optimizer, small.metrics) == (plain.optimizer, plain.metrics)
    assert (small.model.name, small.model.width) == ("dcgan", plain.model.width)
    assert dataclasses.replace(small.dataset, sampling="epoch", hflip=plain.dataset.hflip) == plain.dataset
    train = small.train
    assert (train.iterations, train.epochs, train.batch_size) == (plain.train.iterations, None, 64)


def test_minutes_and_an_hour_leave_the_choice_of_scores() -> None:
    for scores in ("quick", "none", "paper_cat"):
        assert composed("scale=minutes", f"metrics={scores}").metrics == composed(f"metrics={scores}").metrics


@pytest.mark.parametrize("scale", ["minutes", "hour"])
def test_minutes_and_an_hour_are_not_for_r3gan(scale: str) -> None:
    for words in (("experiment=r3gan_stacked",), ("experiment=r3gan_imagenet64", "model=r3gan")):
        with pytest.raises(RelganError, match=r"^scale: .*R3GAN's experiments have scale=cpu$"), user_errors():
            composed(*words, f"scale={scale}")
    small = composed("model=r3gan", f"scale={scale}")
    assert (small.model.name, small.model.width) == ("r3gan", 16)
    assert small.train.iterations == {"minutes": 1000, "hour": 3000}[scale]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of noise in two folders, as large as the largest experiment wants them."""
    path = tmp_path_factory.mktemp("photos") / "photos.zip"
    noise = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20):
            picture = Image.fromarray(noise.integers(0, 256, (256, 256, 3), np.uint8))
            with archive.open(f"{number % 2}/{number:02d}.png", "w") as file:
                picture.save(file, "PNG", compress_level=1)
    return path


QUICK = ("cifar10_stable_a", "cat64", "generator_terms", "r3gan_cifar10")
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXPERIMENTS]


@pytest.mark.parametrize("experiment", EVERY)
def test_smoke_really_runs(experiment: str, photos: Path, tmp_path: Path) -> None:
    """`make smoke` runs them all, scored by the feature network whose weights need no download."""
    torch.set_num_threads(1)
    data = ["dataset=folder", f"dataset.path={photos}"]
    if experiment in ON_DIGITS:
        data = ["dataset=stacked_digits", "dataset.num_images=64"]
    judge = "digits" if experiment in ON_DIGITS else "efficientnet_lite0"
    scores = ["metrics=none"] if experiment in QUICK else [f"metrics.extractor={judge}"]
    config = composed(f"experiment={experiment}", "scale=smoke", "tracker=none", "device=cpu", *data, *scores)
    assert train(build_run(config, tmp_path / "run")) == Outcome("finished", 0)
    assert [line["step"] for line in tiny.records(tmp_path / "run") if line["kind"] == "train"] == [1, 2, 3, 4]
    summary = tiny.summary(tmp_path / "run")
    assert (summary["step"], bool(summary["final"])) == (4, experiment not in QUICK)
    size = config.dataset.image_size
    with Image.open(tmp_path / "run" / "samples" / "step_00000004.png") as grid:
        assert min(grid.size) >= 2 * size
