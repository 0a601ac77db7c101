"""Template name: what is known of a domain; its images lie in ``ROOT/template_name/``."""

from __future__ import annotations

from sfuda_bench.datasets import DatasetSpec, register

register(
    DatasetSpec(
        name="template_name",  # also the name of the folder below --data-root
        title="Template name",  # in tables and figures
        description="Where, when and with which camera the photographs were taken.",
        licence="who may use them, in a few words",
        homepage="https://example.org/template_name",
        citation="the paper to cite",
        aliases=(),
        published_counts=None,  # (train, test) of a published split; other counts get a warning
        roi_center="unknown",
    )
)
