"""sfuda-bench: source-free domain adaptation of optic cup and disc segmentation, compared."""
