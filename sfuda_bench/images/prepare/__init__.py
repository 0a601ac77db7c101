"""From the owners' downloads to regions of interest: layouts, masks, centres, windows, manifest."""
