"""The W&B dashboard as code: the same pictures as the comparison page, of runs as they train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relgan.config import RelganError
from relgan.metrics.direction import direction

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

SCORES = {
    "eval/fid": "FID",
    "eval/fd_digits": "Fréchet distance (digits)",
    "eval/fd_efficientnet_lite0": "Fréchet distance (efficientnet_lite0)",
    "eval/is": "IS",
    "eval/kid": "KID",
    "eval/modes": "Modes",
    "eval/lpips_diversity": "LPIPS diversity",
}
CRITIC = {
    "What the critic makes of images, as the loss compares": ("train/prob_real", "train/prob_fake"),
    "Logits": ("train/logit_real", "train/logit_fake"),
    "Gradient pull": ("train/pull_real", "train/pull_fake"),
}
NORMS = {"Gradient norm, generator": "train/grad_norm_g", "Gradient norm, critic": "train/grad_norm_d"}


def build_workspace(entity: str, project: str) -> ws.Workspace:
    """The saved view, in memory; no network and no key needed.

    Raises:
        RelganError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot, MediaBrowser
    except ImportError as error:
        raise RelganError("wandb-workspaces is missing: pip install 'relgan[dashboard]'") from error

    def curves(title: str, *keys: str, log: bool = False) -> LinePlot:
        return LinePlot(
            title=title, x="step", y=list(keys), log_y=log, groupby_aggfunc="mean", groupby_rangefunc="minmax"
        )

    bars: list[Any] = [
        # The summary of a score is its best, by the name of the direction, and its last.
        BarPlot(
            title=f"{title}, best",
            metrics=[f"{key}.{direction(key)}"],
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )
        for key, title in SCORES.items()
    ]
    critic: list[Any] = [curves(title, *keys) for title, keys in CRITIC.items()]
    norms: list[Any] = [curves(title, key, log=True) for title, key in NORMS.items()]
    pictures = MediaBrowser(title="The same noise in every run", media_keys=["samples/fixed_noise"], num_columns=3)
    return ws.Workspace(
        entity=entity,
        project=project,
        name="relgan: losses compared",
        settings=ws.WorkspaceSettings(x_axis="step", ignore_outliers=False),
        # Plain strings would be taken for metrics.
        runset_settings=ws.RunsetSettings(groupby=[ws.Config("dataset.name"), ws.Config("loss.name")]),
        sections=[
            ws.Section(name="Scores by dataset and loss", is_open=True, panels=bars),
            ws.Section(name="Score curves", is_open=True, panels=[curves(t, key) for key, t in SCORES.items()]),
            ws.Section(name="Critic", is_open=True, panels=critic),
            ws.Section(name="Gradients", is_open=True, panels=norms),
            ws.Section(name="Samples", is_open=True, panels=[pictures]),
        ],
    )


def save_dashboard(entity: str, project: str) -> str:
    """Create the saved view in the project; returns its address.

    Raises:
        RelganError: no key, no wandb-workspaces, or W&B refused.
    """
    import wandb

    workspace = build_workspace(entity, project)
    if not wandb.login(prompt=False, verify=False):
        raise RelganError("wandb: no API key on this machine; run `wandb login` or set WANDB_API_KEY")
    try:
        return str(workspace.save().url)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever breaks in W&B is for the user to mend, not a bug here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RelganError(f"wandb: {entity}/{project}: {reason}") from error
