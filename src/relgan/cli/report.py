"""relgan-report: compare runs on one page, or build the W&B dashboard for them."""

from __future__ import annotations

from dataclasses import dataclass

from relgan.cli.command import CommandOptions, Line, command
from relgan.files import writing_to
from relgan.options import ConfigError, RelganError, option, user_path

USAGE = """relgan-report RUNS [RUNS …] [out=report.html]
relgan-report wandb ENTITY/PROJECT

RUNS is a sweep, a run directory, or any folder that contains run directories; several are compared. The page is one
self-contained file; its numbers are written beside it, to a .csv of the same name. What relgan-eval RUN against=RUN
wrote into a run's directory (out=RUN/NAME.json) is on the page, too. `wandb` builds the dashboard of a Weights & Biases
project: scores by loss and dataset, curves, samples (needs: pip install 'relgan[dashboard]', and wandb login).
"""


@dataclass
class ReportOptions(CommandOptions):
    runs: list[str] = option([], "folders of runs to compare; runs= may be left out")
    out: str = option("report.html", "the page")


def main() -> None:
    command(ReportOptions, USAGE, report, positional="runs")


def report(options: ReportOptions, line: Line) -> None:
    """Write the page, or build the dashboard."""
    if options.runs[:1] == ["wandb"]:
        _dashboard(options.runs[1:])
        return
    out = user_path(options.out)
    if out.suffix.lower() != ".html":
        raise ConfigError("out", f"{out} does not end in .html")
    if not options.runs:
        raise RelganError("give a sweep, a run directory or a folder that contains runs")

    from relgan.report import csv_of, write_report

    with writing_to(out, "out"):
        page = write_report([user_path(path) for path in options.runs], out.parent, out.name)
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB), {csv_of(page)}")


def _dashboard(projects: list[str]) -> None:
    if len(projects) != 1 or projects[0].count("/") != 1 or not all(projects[0].split("/")):
        raise RelganError("wandb: give one ENTITY/PROJECT")

    from relgan.report.dashboard import save_dashboard

    entity, project = projects[0].split("/")
    print(save_dashboard(entity, project))


if __name__ == "__main__":
    main()
