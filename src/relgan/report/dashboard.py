"""The W&B dashboard as code: the same pictures as the comparison page, of runs as they train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relgan.metrics.catalogue import direction, full_key, spellings, title
from relgan.options import RelganError, first_line
from relgan.registry import EXTRACTORS, SCORES

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

USUAL = (
    *("eval/fid", "eval/fd_digits", "eval/fd_efficientnet_lite0"),
    *("eval/is", "eval/kid", "eval/modes", "eval/lpips_diversity"),
)
CRITIC = {
    "What the critic makes of images, as the loss compares": ("train/prob_real", "train/prob_fake"),
    "Logits": ("train/logit_real", "train/logit_fake"),
    "Gradient pull": ("train/pull_real", "train/pull_fake"),
}
NORMS = {"Gradient norm, generator": "train/grad_norm_g", "Gradient norm, critic": "train/grad_norm_d"}


def shown_scores() -> list[str]:
    """Keys of the usual scores and of those that other people's code adds."""
    distances = [full_key("fid", entry.name) for entry in EXTRACTORS.values() if entry.foreign]
    return [*USUAL, *distances, *(key for entry in SCORES.values() if entry.foreign for key in spellings(entry.name))]


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

    def curves(name: str, *keys: str, log: bool = False) -> LinePlot:
        return LinePlot(
            title=name, x="step", y=list(keys), log_y=log, groupby_aggfunc="mean", groupby_rangefunc="minmax"
        )

    scores = shown_scores()
    bars: list[Any] = [
        # The summary of a score is its best, by the name of the direction, and its last.
        BarPlot(
            title=f"{title(key)}, best",
            metrics=[f"{key}.{direction(key)}"],
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )
        for key in scores
    ]
    critic: list[Any] = [curves(name, *keys) for name, keys in CRITIC.items()]
    norms: list[Any] = [curves(name, key, log=True) for name, key in NORMS.items()]
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
            ws.Section(name="Score curves", is_open=True, panels=[curves(title(key), key) for key in scores]),
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
        reason = first_line(error)
        raise RelganError(f"wandb: {entity}/{project}: {reason}") from error
