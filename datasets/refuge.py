"""REFUGE: the training release (Zeiss) and the validation release (Canon) are two domains."""

from sfuda_bench.datasets import DatasetSpec, register

_CITATION = (
    "Orlando et al., REFUGE Challenge: A unified framework for evaluating automated methods for "
    "glaucoma assessment from fundus photographs, Medical Image Analysis 59, 2020"
)
_HOMEPAGE = "https://refuge.grand-challenge.org/"
_LICENCE = "Research use; register with the challenge."

register(
    DatasetSpec(
        name="refuge_train",
        title="REFUGE train",
        aliases=("Domain3", "refuge-train", "refugetrain"),
        families=("refuge",),
        published_counts=(320, 80),
        roi_center="detector",
        description="400 eyes of the challenge's training release, Zeiss Visucam 500.",
        licence=_LICENCE,
        homepage=_HOMEPAGE,
        citation=_CITATION,
    )
)
register(
    DatasetSpec(
        name="refuge_val",
        title="REFUGE validation",
        aliases=("Domain4", "refuge-val", "refugeval", "refuge_validation"),
        families=("refuge",),
        published_counts=(320, 80),
        roi_center="detector",
        description="400 eyes of the challenge's validation release, Canon CR-2.",
        licence=_LICENCE,
        homepage=_HOMEPAGE,
        citation=_CITATION,
    )
)
