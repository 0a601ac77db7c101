"""RIGA: 750 retinal images of three sources, optic disc and cup by six experts."""

from sfuda_bench.datasets import DatasetSpec, register

register(
    DatasetSpec(
        name="riga",
        title="RIGA",
        aliases=("riga_subset",),
        roi_center="gt",
        description="Disc crops of a subset; there is no published split.",
        licence="See the owners' page.",
        homepage="https://deepblue.lib.umich.edu/data/concern/data_sets/3b591905z",
        citation="Almazroa et al., Retinal fundus images for glaucoma analysis: the RIGA dataset, "
        "SPIE Medical Imaging 2018",
    )
)
