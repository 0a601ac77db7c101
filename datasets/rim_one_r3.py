"""RIM-ONE r3: 159 stereo retinal images from Spain; optic disc and cup by two experts."""

from sfuda_bench.datasets import DatasetSpec, register

register(
    DatasetSpec(
        name="rim_one_r3",
        title="RIM-ONE r3",
        aliases=("Domain2", "rimone_r3", "rim-one-r3", "rimone", "rim_one", "rimoner3"),
        published_counts=(99, 60),
        roi_center="detector",
        description="159 stereo pairs from Spain (left half annotated), healthy to glaucoma.",
        licence="Research use; redistribution needs the owners' consent.",
        homepage="http://medimrg.webs.ull.es/",
        citation="Fumero et al., RIM-ONE: An open retinal image database for optic nerve "
        "evaluation, CBMS 2011",
    )
)
