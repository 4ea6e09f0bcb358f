"""relgan-data as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relgan.cli import data
from relgan.registry import DATASETS

pytestmark = pytest.mark.usefixtures("cache")

# Tops of the images of an augmentation's sheet: at p = 0, three rows at p = ½, three at p = 1.
ROWS = (52, 224, 356, 488, 644, 776, 908)


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for grey in range(10):
        Image.new("RGB", (40, 40), (grey * 20,) * 3).save(folder / f"{grey}.png")
    return f"dataset.path={folder}"


@pytest.fixture
def relgan_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["relgan-data", *arguments])
        status = 0
        try:
            data.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return (status, *capsys.readouterr())

    return call


def test_prepare_then_list_show_and_verify(relgan_data, pictures: str, cache: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = relgan_data("prepare", "dataset=folder", pictures)
    assert (status, out.count("10 images")) == (0, 1)
    _, out, _ = relgan_data("list")
    assert "10 images, 0.0 MB" in out
    assert f"prepared in {cache}" in out

    sheet = tmp_path / "sheet.png"
    status, out, _ = relgan_data("show", "dataset=folder", pictures, f"out={sheet}")
    facts = json.loads(out[: out.rindex("}") + 1])
    assert status == 0
    assert facts["num_images"] == 10
    assert facts["skipped"] == {}
    with Image.open(sheet) as image:
        shown = {int(grey) for grey in np.unique(np.asarray(image))}
    assert {grey * 20 for grey in range(10)} <= shown, "every image is on the sheet"

    assert relgan_data("verify")[:2] == (0, f"{facts['path']}: 10 images, unchanged\n")
    images = Path(facts["path"]) / "images.npy"
    images.write_bytes(images.read_bytes()[:-1] + b"\1")
    status, out, err = relgan_data("verify")
    assert status == 2
    assert "has changed on disk" in out
    assert err == "relgan-data: 1 of 1 prepared data sets are damaged\n"


def test_an_augmentation_is_shown_on_the_same_images(  # type: ignore[no-untyped-def]
    relgan_data, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ("show", "dataset=folder", pictures, "augment=diffaugment", "augment.policy=[cutout]")
    status, out, err = relgan_data(*line)
    assert status == 0, err
    assert out.endswith("contact sheet: folder_32_diffaugment.png\n")
    with Image.open("folder_32_diffaugment.png") as image:
        sheet = np.asarray(image)[:, :, 0]
    # At p = 0 (where the greys of the folder are seen) no image has the grey square, at p = 1 each has it.
    cells = [[sheet[top : top + 128, left : left + 128] for left in range(4, 1056, 132)] for top in ROWS]
    assert [int(cell[0, 0]) for cell in cells[0]] == [0, 20, 40, 60, 100, 120, 140, 180]
    cut = [sum(bool((cell == 128).any()) for cell in row) for row in cells]
    assert cut[0] == 0
    assert 0 < sum(cut[1:4]) < 24
    assert cut[4:] == [8, 8, 8]

    relgan_data(*line, "out=again.png")
    assert Path("again.png").read_bytes() == Path("folder_32_diffaugment.png").read_bytes()
    assert relgan_data("show", "dataset=folder", pictures)[1].endswith("contact sheet: folder_32.png\n")


def test_only_an_augmentation_that_is_asked_for_is_shown(  # type: ignore[no-untyped-def]
    relgan_data, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    brings_ada = ("show", "experiment=r3gan_64", pictures, "dataset.image_size=32")
    for words, suffix in (((), ""), (("augment=none", "schedule.augment_p=null"), ""), (("augment.p=0.5",), "_ada")):
        assert relgan_data(*brings_ada, *words)[1].endswith(f"contact sheet: folder_32{suffix}.png\n")


@pytest.mark.parametrize("columns", ["80", "200"])
def test_list_names_every_dataset_and_its_terms(relgan_data, columns, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", columns)
    status, out, _ = relgan_data("list")
    assert status == 0
    assert not [name for name in DATASETS if name not in out]
    assert "…" not in out
    assert "commercial" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["polish"], "relgan-data: action: 'polish' is not one of list, prepare, show, verify"),
        (["prepare", "dataset=fodler"], "relgan-data: dataset=fodler: not one of"),
        (["prepare", "dataset.pth=x"], "relgan-data: dataset.pth: no such option; did you mean dataset.path?"),
        (["prepare", "dataset.image_size=48"], "dataset.image_size: 48 is not one of 16, 32, 64, 128, 256"),
        (["prepare", "dataset=folder", "dataset.path=/nowhere"], "dataset.path: /nowhere does not exist"),
        (["prepare", "dataset=celeba"], "dataset.path: get img_align_celeba.zip from"),
        (["prepare", "dataset=cat"], "dataset.path: get CAT_DATASET_01.zip"),
        (["verify", "dataset=digits"], "is not prepared: relgan-data prepare dataset=digits"),
        (
            ["show", "dataset=digits", "augment=adda"],
            "augment=adda: not one of ada, diffaugment, none; did you mean ada?",
        ),
        (
            ["show", "dataset=digits", "augment=ada"],
            "augment: ada changes colours of RGB images, those of digits have one channel;",
        ),
    ],
)
def test_mistakes_are_one_line_and_status_2(relgan_data, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    status, out, err = relgan_data(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_few_images_need_a_word(relgan_data, pictures: str, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    arguments = ("prepare", "dataset=folder", pictures, "dataset.min_images=11")
    assert "dataset.min_images: only 10 images after preparing" in relgan_data(*arguments)[2]
    assert relgan_data(*arguments[:-1], "dataset.min_images=1")[0] == 0
    assert "10 images are few" in caplog.text


def test_help_needs_no_heavy_import() -> None:
    code = "import sys; sys.argv = ['relgan-data', '--help']\nfrom relgan.cli.data import main\nmain()\n"
    code += "assert not {'torch', 'sklearn'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verify" in done.stdout


@pytest.mark.parametrize(
    ("name", "options"), [("celeba", []), ("cat", ["dataset.min_images=1"]), ("digits", []), ("stacked_digits", [])]
)
def test_every_kind_can_be_shown(relgan_data, sample_data: Path, tmp_path: Path, name: str, options: list[str]) -> None:  # type: ignore[no-untyped-def]
    archives = {"celeba": "celeba-10k-89x109.zip", "cat": "cat-sample-24.zip"}
    if name in archives:
        options = [*options, f"dataset.path={sample_data / archives[name]}"]
    if name == "celeba":
        options.append("dataset.num_images=1000")
    status, out, err = relgan_data("show", f"dataset={name}", *options, f"out={tmp_path / 'sheet.png'}")
    assert status == 0, err
    assert "fingerprint" in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000
