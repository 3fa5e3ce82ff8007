"""NIfTI in, arrays out: grids, streams of volumes, sampling, ROI maps, connectomes, contrast maps."""
