"""relgan-report: compare runs on one page, or build the W&B dashboard for them."""

from __future__ import annotations

import sys
from pathlib import Path

from relgan.cli import app
from relgan.config import ConfigError, RelganError

HELP = """relgan-report PATH [PATH …] [out=report.html]
relgan-report wandb ENTITY/PROJECT

  PATH        a sweep, a run directory, or any folder that contains run directories; several are compared
  out=FILE    the page, one self-contained file (default report.html); results.csv is written beside it

  wandb       build the dashboard of a Weights & Biases project: scores by loss and dataset, curves, samples
              (needs: pip install 'relgan[dashboard]', and wandb login)
"""


def main() -> None:
    with app.guard():
        _main(sys.argv[1:])


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if arguments[0] == "wandb":
        _dashboard(arguments[1:])
        return
    out = Path("report.html")
    paths = []
    for argument in arguments:
        option, sign, value = argument.partition("=")
        # A sweep's job directories have = in their names.
        if not sign or Path(argument).exists():
            paths.append(Path(argument))
        elif option == "out":
            out = Path(value)
        else:
            raise RelganError(f"{option}: no such option, and {argument} is not a directory; relgan-report --help")
    if out.suffix.lower() != ".html":
        raise ConfigError("out", f"{out} does not end in .html")
    if not paths:
        raise RelganError("give a sweep, a run directory or a folder that contains some")

    from relgan.report import write_report

    try:
        page = write_report(paths, out.parent, out.name)
    except OSError as error:
        raise ConfigError("out", f"{out} cannot be written ({error.strerror})") from error
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB), {page.with_name('results.csv')}")


def _dashboard(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].count("/") != 1 or not all(arguments[0].split("/")):
        raise RelganError("wandb: give one ENTITY/PROJECT")

    from relgan.report.dashboard import save_dashboard

    entity, project = arguments[0].split("/")
    print(save_dashboard(entity, project))


if __name__ == "__main__":
    main()
