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
# Charts of training by section: one value each, so that its lines are losses.
TRAINING = {
    "Critic": {
        "Critic's mean probability for real images": "train/prob_real",
        "Critic's mean probability for generated images": "train/prob_fake",
        "Pull on real images, |∂L/∂r|": "train/pull_real",
        "Pull on generated images, |∂L/∂f|": "train/pull_fake",
        "Logit of real images": "train/logit_real",
        "Logit of generated images": "train/logit_fake",
    },
    "Losses": {
        "Critic's loss": "train/loss_d",
        "Generator's loss": "train/loss_g",
        "Penalty": "train/penalty",
        "Gradient norm, critic": "train/grad_norm_d",
        "Gradient norm, generator": "train/grad_norm_g",
    },
    "Scheduled values": {
        "γ of the penalty": "train/gamma",
        "Probability of augmentation": "train/augment_p",
        "Learning rate, generator": "train/lr_g",
        "Learning rate, critic": "train/lr_d",
    },
}
PROBABILITIES = ("train/prob_real", "train/prob_fake", "train/augment_p")
OVER_DECADES = ("train/pull_real", "train/pull_fake", "train/grad_norm_d", "train/grad_norm_g")
PICTURES = {
    "The same noise in every run": "samples/fixed_noise",
    "Real images": "samples/real",
}


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

    def curve(name: str, key: str) -> LinePlot:
        """Mean of a group's runs, in the band between the lowest and the highest."""
        return LinePlot(
            title=name,
            x="step",
            y=[key],
            log_y=key in OVER_DECADES,
            range_y=(0, 1) if key in PROBABILITIES else (None, None),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
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
    pictures: list[Any] = [
        MediaBrowser(title=name, media_keys=[key], num_columns=3, mode="gallery", gallery_axis="step")
        for name, key in PICTURES.items()
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="relgan: losses compared",
        settings=ws.WorkspaceSettings(x_axis="step", ignore_outliers=False),
        # Plain strings would be taken for metrics.
        runset_settings=ws.RunsetSettings(groupby=[ws.Config("choices.dataset"), ws.Config("choices.loss")]),
        sections=[
            ws.Section(name="Scores by dataset and loss", is_open=True, panels=bars),
            ws.Section(name="Score curves", is_open=True, panels=[curve(title(key), key) for key in scores]),
            ws.Section(name="Samples", is_open=True, panels=pictures),
            *(
                ws.Section(name=name, is_open=True, panels=[curve(*chart) for chart in charts.items()])
                for name, charts in TRAINING.items()
            ),
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
