"""Drishti-GS1: 101 retinal images from Madurai, India; optic disc and cup by four experts."""

from sfuda_bench.datasets import DatasetSpec, register

register(
    DatasetSpec(
        name="drishti_gs",
        title="Drishti-GS",
        aliases=("Domain1", "drishti", "drishti-gs", "drishti_gs1", "drishtigs"),
        published_counts=(50, 51),
        roi_center="detector",
        description="101 eyes from one hospital in India, mostly glaucoma; official split.",
        licence="Research use; ask the owners.",
        homepage="https://cvit.iiit.ac.in/projects/mip/drishti-gs/mip-dataset2/Home.php",
        citation="Sivaswamy et al., A comprehensive retinal image dataset for the assessment of "
        "glaucoma from the optic nerve head analysis, JSM Biomedical Imaging Data Papers, 2015",
    )
)
