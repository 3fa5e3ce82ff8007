"""Plans: what is to be read, written and asked for, how long it takes, and by what it is known."""

from __future__ import annotations

import json
import shutil

import pytest

from cohort_files import make_study
from dtg_ray import Study, ledger
from dtg_ray.cli import main
from dtg_ray.imaging.scan import Scan
from dtg_ray.models import build, complete_config, forward_operations
from dtg_ray.stages import connectomes, contrasts, estimates, synthesize
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options

MODELS = {"mean": {"kind": "group_mean"}, "linear": {"kind": "linear"}}
NETWORK = {"architecture": "unet", "n_rois": 3, "n_contrasts": 2, "width": 2, "norm": "none"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of six people in three blocks, the last of whom has no task maps."""
    folder = tmp_path_factory.mktemp("plan")
    study = make_study(folder, models=MODELS, synthesis={"slab": 100})
    assert main(["run", study.uri, "--inline", "--quiet"]) == 0
    return study.uri


@pytest.fixture
def study(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "study")
    return Study(str(tmp_path / "study"))


def files(study, folder):
    return [name for name in study.storage.names(folder) if "/c/" in name or name.startswith("receipts/")]


def pending(study, stage):
    return ledger.account(study, stage).pending()


class TestObjects:
    def test_of_connectomes_are_those_written(self, study):
        for name in ("connectomes.zarr", "receipts/connectomes"):
            shutil.rmtree(f"{study.uri}/{name}")
        todo = connectomes.plan(ledger.Ledger(study), pending(study, "connectomes"))
        connectomes.run(study, Options(inline=True, quiet=True))
        written = [*files(study, "connectomes.zarr/connectome"), *files(study, "connectomes.zarr/roi_connectome")]
        assert todo.objects == len(written) + len(files(study, "receipts/connectomes"))

    def test_of_maps_are_no_fewer_than_those_written(self, study):
        """A chunk of nothing but NaN is not stored, and who lacks a map is known only then."""
        shutil.rmtree(f"{study.uri}/contrasts.zarr")
        shutil.rmtree(f"{study.uri}/receipts/contrasts")
        account = ledger.account(study, "contrasts")
        todo = contrasts.plan(study, account, account.pending(), "contrasts")
        contrasts.run(study, Options(inline=True, quiet=True))
        slabs = -(-study.grid.n_voxels // 100)
        assert todo.objects == 3 * 2 * slabs + 3
        assert 3 < len(files(study, "contrasts.zarr/maps")) + 3 <= todo.objects

    def test_of_synthesis_are_those_written(self, study):
        shutil.rmtree(f"{study.uri}/synthetic")
        shutil.rmtree(f"{study.uri}/receipts/synthesize")
        todo = synthesize.plan(ledger.Ledger(study), "mean", pending(study, "synthesize/mean"))
        synthesize.run(study, Options(inline=True, quiet=True), "mean")
        written = [*files(study, "synthetic/mean.zarr/maps"), *files(study, "receipts/synthesize/mean")]
        assert todo.objects == len(written)


class TestTime:
    def test_is_that_of_the_receipts_there_are(self, study):
        rows = ledger.account(study, "connectomes").rows
        study.storage.delete("receipts/connectomes/block-00001.parquet")
        left = rows[rows["unit"] != "block-00001"]
        todo = connectomes.plan(ledger.Ledger(study), ["block-00001"])
        assert todo.measured_on == 4
        assert todo.seconds == pytest.approx(2 * left["seconds"].mean())

    def test_is_a_guess_before_there_are_any(self, study):
        shutil.rmtree(f"{study.uri}/receipts/connectomes")
        todo = connectomes.plan(ledger.Ledger(study), pending(study, "connectomes"))
        voxels = 6 * 60 * study.grid.n_voxels  # what is planned for runs shorter than that
        assert todo.measured_on == 0
        assert todo.seconds == pytest.approx(voxels * estimates.SECONDS_PER_VOXEL_AND_VOLUME)

    def test_of_models_together_counts_rest_runs_once(self, study, capsys):
        for name in ("receipts/connectomes", "receipts/synthesize", "connectomes.zarr"):
            shutil.rmtree(f"{study.uri}/{name}")
        assert main(["synthesize", study.uri, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "synthesize, all together: 3 of 3 to do, 6 subjects" in said
        book = ledger.Ledger(study)
        plans = [synthesize.plan(book, name, pending(study, f"synthesize/{name}")) for name in MODELS]
        whole = synthesize.together(book, plans, pending(study, "synthesize/mean"), [])
        alone = connectomes.seconds_per_subject(book, study.cohort)[0] * 6
        assert whole.seconds == pytest.approx(sum(one.seconds for one in plans) - alone)
        assert whole.bytes_in == plans[0].bytes_in
        assert whole.bytes_out == sum(one.bytes_out for one in plans)


class TestRequests:
    def test_are_none_of_what_is_local(self, study):
        shutil.rmtree(f"{study.uri}/receipts/connectomes")
        assert connectomes.plan(ledger.Ledger(study), pending(study, "connectomes")).requests == 0

    def test_of_images_follow_from_their_sizes(self, study):
        rows = study.cohort.copy()
        rows["rest"] = [[Scan("s3://b/a.nii.gz"), Scan("zip://x.nii::s3://b/b.zip")]] * 6
        rows["rest_bytes"] = 100 * 2**20
        assert estimates.image_requests(rows) == 6 * (2 * 2 + 3)

    def test_to_a_bucket_are_objects_and_receipts(self):
        assert estimates.requests("s3://bucket/study", 100, 10) == 100 + 10 * estimates.PER_BLOCK
        assert estimates.requests("/study", 100, 10) == 0


def test_operations_are_those_of_the_convolutions():
    """By hand: two per weight and voxel, of every convolution that the network calls."""
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        voxels = inputs[0][0, 0].numel() if isinstance(module, torch.nn.ConvTranspose3d) else output[0, 0].numel()
        counted += 2 * module.weight.numel() * voxels

    import torch

    network = build(complete_config(NETWORK)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            module.register_forward_hook(count)
    network(torch.zeros(1, 3, 8, 9, 10))
    assert forward_operations(complete_config(NETWORK), (8, 9, 10)) == counted


def test_details_say_what_they_are_known_by():
    todo = Plan("s", 9, 3, 30, 10**9, 2 * 10**9, objects=1234, seconds=7200, measured_on=12, requests=5678)
    said = "\n".join(todo.details())
    assert "1,234 objects, 2.0 GB" in said
    assert "2 h 0 min of a worker" in said
    assert "measured on 12 subjects" in said
    assert "5,678 to object stores" in said
    assert Plan("s", 9, 0, 0, seconds=1.0).details() == []
    assert json.loads(todo.to_json())["requests"] == 5678
