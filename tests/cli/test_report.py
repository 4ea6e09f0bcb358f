"""relgan-report: what it writes, what it escapes, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from made_runs import STEPS, make_run, make_sweep
from relgan.cli import report
from relgan.cli.sweep import grow_page
from relgan.report import write_report


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["relgan-report", *arguments])
    report.main()


def test_several_sweeps_make_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "short" / "loss=ragan,seed=1", train__iterations=500)
    make_run(tmp_path / "long" / "loss=ragan,seed=1", train__iterations=1000)
    call(monkeypatch, "short", "long/loss=ragan,seed=1", "out=compared.html")
    page = (tmp_path / "compared.html").read_text()
    assert "iterations=500" in page
    assert "iterations=1000" in page
    assert (tmp_path / "compared.csv").read_text().count("\n") == 3
    assert "compared.html" in capsys.readouterr().out
    call(monkeypatch, "short", "out=short.html")
    assert (tmp_path / "short.csv").read_text().count("\n") == 2
    assert (tmp_path / "compared.csv").read_text().count("\n") == 3  # each page has numbers of its own


def test_the_exact_command_of_every_job_is_there(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", ["ragan", "sgan"], ["digits"], 2)
    page = write_report([tmp_path / "s"], tmp_path).read_text()
    for loss in ("ragan", "sgan"):
        for seed in (1, 2):
            assert f"relgan-train loss={loss} dataset=digits seed={seed}<" in page
    assert "RuntimeError: out of memory" in page
    assert "1 diverged" in page


def test_everything_from_a_run_directory_is_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\"'&"
    make_run(tmp_path / "a" / "<img src=x>", evil, f"cifar{evil}", error=evil, model__name=evil)
    make_run(tmp_path / "a" / "b", "sgan", model__name="dcgan")
    page = write_report([tmp_path / "a"], tmp_path).read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img src=x>" not in page
    assert page.count("</script>") == 1


def test_a_run_links_to_its_tracker(tmp_path: Path) -> None:
    path = make_run(tmp_path / "s" / "a")
    summary = json.loads((path / "summary.json").read_text())
    urls = {"wandb": "https://wandb.ai/e/p/runs/1", "evil": "javascript:alert(1)"}
    (path / "summary.json").write_text(json.dumps({**summary, "tracker_urls": urls}))
    page = write_report([tmp_path / "s"], tmp_path / "s").read_text()
    assert '<a href="https://wandb.ai/e/p/runs/1">wandb</a>' in page
    assert "javascript:" not in page


def test_the_page_asks_for_nothing_from_the_network(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", ["ragan", "sgan"], ["digits"], 1)
    page = write_report([tmp_path / "s"], tmp_path).read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page


def test_no_torch_is_imported(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    code = (
        "import sys; from relgan.cli import report; sys.argv = ['relgan-report', *sys.argv[1:]]; report.main(); "
        "assert not {'torch', 'wandb', 'matplotlib'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a"), f"out={tmp_path / 'r.html'}"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere is not a directory"),
        (["EMPTY"], "holds no run directory"),
        (["out=a.html"], "give a sweep, a run directory"),
        (["EMPTY", "out=a.pdf"], "out: a.pdf does not end in .html"),
        (["EMPTY", "title=x"], "title: no such option"),
        (["RUN", "out=RUN/config.yaml/a.html"], "cannot be written"),
        (["wandb", "project"], "wandb: give one ENTITY/PROJECT"),
        (["wandb", "a/b", "c"], "wandb: give one ENTITY/PROJECT"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    run = make_run(tmp_path / "run")
    places = {"EMPTY": str(tmp_path / "empty"), "RUN": str(run)}
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, *(a.replace("EMPTY", places["EMPTY"]).replace("RUN", places["RUN"]) for a in arguments))
    assert caught.value.code == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1
    assert message in shown[0]


def test_the_dashboard_without_a_key_is_one_line() -> None:
    pytest.importorskip("wandb_workspaces", reason="the dashboard extra is not installed")
    code = "import sys; sys.argv = ['relgan-report', 'wandb', 'a/b']; from relgan.cli import report; report.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line == "relgan-report: wandb: no API key on this machine; run `wandb login` or set WANDB_API_KEY"


def test_what_ended_badly_is_counted_for_each_dataset(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", ["ragan", "sgan"], ["digits", "cifar10"], 2)  # digits has the bad ones
    page = " ".join(write_report([tmp_path / "s"], tmp_path).read_text().split())
    assert '<small class="diverged">digits: 1 diverged</small>' in page
    assert '<small class="failed">digits: 1 failed</small>' in page
    assert ">cifar10: " not in page
    assert "ragan: of 2 seeds 1 diverged, not counted in its mean." in page
    make_sweep(tmp_path / "t", ["ragan", "sgan"], ["digits"], 2)
    assert ">digits: " not in write_report([tmp_path / "t"], tmp_path).read_text()


def test_one_run_is_one(tmp_path: Path) -> None:
    page = " ".join(write_report([make_run(tmp_path / "a")], tmp_path).read_text().split())
    assert "1 run on stacked_digits" in page
    assert "<h1>ragan on stacked_digits, seed 1</h1>" in page
    assert "1 runs" not in page
    assert "Which is better?" not in page


def test_one_evaluation_is_a_table_and_no_chart(tmp_path: Path) -> None:
    for loss in ("ragan", "sgan"):
        path = make_run(tmp_path / "s" / loss, loss)
        lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if '"eval"' not in line or f'"step": {STEPS}' in line]
        (path / "metrics.jsonl").write_text("".join(kept))
    page = write_report([tmp_path / "s"], tmp_path).read_text()
    assert "Over training" not in page
    assert "best of any" not in page
    assert ">at the end<" in page


def test_networks_compared_on_the_same_latents_are_shown(tmp_path: Path) -> None:
    for loss in ("ragan", "sgan"):
        make_run(tmp_path / "s" / loss, loss)
    compared = {
        "scores": {"eval/fd_digits": 20.0},
        "protocol": {"step": 2000, "against": {"run": "s/sgan", "step": 1500}},
        "comparison": {
            "eval/fd_digits": {
                "run": [20.0, 19.0, 21.0],
                "against": [30.0, 29.0, 31.0],
                "difference": [-10.0, -12.5, -7.5],
                "better": "run",
            }
        },
    }
    run = tmp_path / "s" / "ragan"
    (run / "damaged.json").write_text('{"comparison": {"eval/fd_digits": 1}, "protocol": []}')
    (run / "scores.json").write_text('{"scores": {"eval/fd_digits": 20.0}, "protocol": {"step": 2000}}')
    page = tmp_path / "report.html"
    write_report([tmp_path / "s"], tmp_path)
    assert "Compared on the same noise" not in page.read_text()
    (run / "against.json").write_text(json.dumps(compared))
    write_report([tmp_path / "s"], tmp_path)
    text = " ".join(re.sub("<[^>]*>", " ", page.read_text().partition("Compared on the same noise")[2]).split())
    assert "sgan, seed 1 1,500 updates Fréchet distance (digits) −10 −12.5 to −7.5 better" in text


def shown(sweep_dir: Path) -> int:
    """Runs on a sweep's page."""
    return (sweep_dir / "report.csv").read_text().count("\n") - 1


def test_a_page_is_written_for_no_job_that_ends_right_after_another_or_beside_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "1")
    grow_page(tmp_path)
    make_run(tmp_path / "2", seed=2)
    grow_page(tmp_path)
    assert shown(tmp_path) == 1
    monkeypatch.setattr("relgan.cli.sweep.PAGE_EVERY_S", 0)
    with FileLock(tmp_path / ".report.html.lock", is_singleton=False):
        grow_page(tmp_path)
    assert shown(tmp_path) == 1
    grow_page(tmp_path)
    assert shown(tmp_path) == 2
