"""Where the results of a study are and how to open them, in words."""

from __future__ import annotations

from dtg_ray.study import Study


def where_things_are(study: Study) -> list[str]:
    """Lines that say which outputs there are, with one line of Python for each way to open them."""
    model = study.default_model
    contrast = study.config.maps_of(model)[0]
    subject = study.cohort["subject"].iloc[0]
    uri = study.uri
    maps = f"{uri}/synthetic/{model}.zarr"
    one = f'from dtg_ray import Study; image = Study("{uri}").map("{subject}", "{contrast}")'
    return [
        f"maps          {maps}   (contrast, subject, voxel)",
        *([f"report        {uri}/report/index.html"] if study.storage.exists("report/index.html") else []),
        f"tables        {uri}/evaluation/*.parquet  {uri}/prediction/*.parquet",
        f'with xarray   import xarray; maps = xarray.open_zarr("{maps}", consolidated=False)',
        f'with nibabel  {one}; image.to_filename("map.nii.gz")',
        f'with nilearn  {one}; from nilearn import plotting; plotting.plot_stat_map(image).savefig("map.png")',
        f"what failed   dtg status {uri}",
    ]
