"""What scores are called and which way they improve."""

from __future__ import annotations

import pytest

from relgan.metrics.catalogue import direction, family, full_key, spellings, title
from relgan.registry import EXTRACTORS, SCORES


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("eval/fid", "min"),
        ("eval/fd_digits", "min"),
        ("eval/kid", "min"),
        ("eval/kd_efficientnet_lite0", "min"),
        ("eval/mode_kl", "min"),
        ("eval/is", "max"),
        ("eval/score_digits", "max"),
        ("eval/precision", "max"),
        ("eval/recall_efficientnet_lite0", "max"),
        ("eval/density", "max"),
        ("eval/coverage_digits", "max"),
        ("eval/fid_infinity", "min"),
        ("eval/fd_infinity_digits", "min"),
        ("eval/fd_infinity_digits_se", None),
        ("eval/score_infinity_digits", "max"),
        ("eval/authenticity_digits", "max"),
        ("eval/vendi_digits", "max"),
        ("eval/lpips_diversity", "max"),
        ("eval/modes", "max"),
        ("eval/mode_confidence", "max"),
        ("eval/is_std", None),
        ("eval/score_digits_std", None),
        ("eval/lpips_diversity_se", None),
        ("eval/label_agreement", "max"),
        ("eval/label_agreement_real", None),
        ("eval/label_agreement_inception", "max"),
        ("eval/label_agreement_real_dinov2_s", None),
        ("eval/modes_inception", None),
        ("eval/kid_std", None),
        ("eval/seconds", None),
        ("train/loss_d", None),
    ],
)
def test_direction(key: str, expected: str | None) -> None:
    assert direction(key) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("eval/fid", "FID"),
        ("eval/fd_efficientnet_lite0", "Fréchet distance (efficientnet_lite0)"),
        ("eval/fd_never_heard_of", "Fréchet distance (never_heard_of)"),
        ("eval/fid_infinity", "FID∞"),
        ("eval/fd_infinity_digits_se", "Fréchet distance∞ (digits), standard error"),
        ("eval/mode_kl", "Mode KL"),
        ("eval/is", "IS"),
        ("eval/is_std", "IS, standard deviation"),
        ("eval/score_digits_std", "Classifier score (digits), standard deviation"),
        ("eval/lpips_diversity", "LPIPS diversity"),
        ("eval/lpips_diversity_se", "LPIPS diversity, standard error"),
        ("eval/recall_digits", "Recall (digits)"),
        ("eval/label_agreement_real", "Label agreement of real images"),
        ("eval/label_agreement_real_clip_b32", "Label agreement of real images (clip_b32)"),
        ("eval/unheard_of", "unheard of"),
    ],
)
def test_scores_have_names_for_people(key: str, expected: str) -> None:
    assert title(key) == expected


def test_the_family_tells_what_a_score_depends_on() -> None:
    families = {
        "eval/fid": "features",
        "eval/kd_digits_std": "features",
        "eval/mode_kl": "modes",
        "eval/lpips_diversity_se": "lpips",
        "eval/label_agreement_real": "label_agreement",
        "eval/label_agreement_inception": "label_agreement",
        "eval/unheard_of": "features",
    }
    assert {key: family(key) for key in families} == families


def test_only_the_literatures_network_uses_its_names() -> None:
    names = ("fid", "is", "is_std", "kid", "precision", "fid_infinity_se", "is_infinity")
    assert [full_key(name, "inception") for name in names] == [f"eval/{name}" for name in names]
    other = [
        *("fd_mine", "score_mine", "score_mine_std", "kd_mine", "precision_mine"),
        *("fd_infinity_mine_se", "score_infinity_mine"),
    ]
    assert [full_key(name, "mine") for name in names] == [f"eval/{name}" for name in other]


def test_an_extractor_stands_in_the_key_of_an_agreement_unless_it_is_the_digit_classifier() -> None:
    assert full_key("label_agreement_real", "digits") == "eval/label_agreement_real"
    assert full_key("label_agreement", "inception") == "eval/label_agreement_inception"
    assert {"eval/label_agreement", "eval/label_agreement_clip_b32"} <= set(spellings("label_agreement"))


def test_every_score_can_be_ranked_with_every_extractor() -> None:
    for score in set(SCORES) - {"neighbours"}:
        keys = spellings(score)
        assert len(keys) % len(EXTRACTORS) == 0 or score in ("modes", "lpips_diversity")
        assert keys
        assert all(direction(key) is not None for key in keys)
    assert spellings("neighbours") == []
