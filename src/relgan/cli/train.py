"""relgan-train: one run, or with -m a sweep."""

from __future__ import annotations

from pathlib import Path

from relgan.cli import app
from relgan.config import Config


def train(config: Config, run_dir: Path) -> None:
    from relgan.build import build_run
    from relgan.training.loop import train as train_run

    status = train_run(build_run(config, run_dir))
    if status.exit_code:
        raise SystemExit(status.exit_code)


def main() -> None:
    app.run(train)


if __name__ == "__main__":
    main()
