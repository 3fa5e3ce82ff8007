"""Studies on S3: what they look like when the network fails, encrypted, and without anybody's credentials in them."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import pandas as pd
import pytest
import yaml

from cohort_files import write_cohort
from dtg_ray import Study, ledger
from dtg_ray.cli import main
from dtg_ray.store.files import Storage
from dtg_ray.store.receipts import VARYING, Receipts
from dtg_ray.study import CONFIG
from s3_faults import KINDS, forget_connections
from stage_tools import Tools, lasting

pytestmark = pytest.mark.s3
SECRET, TOKEN = "wJalrXUtnFEMI/sEcReT", "FwoGZXIvYXdzEToKeN"
WITHOUT_MAPS = [*["done"] * 5, "excluded"]
"""The last of the six people has none."""
TIMES = {"seconds", "waiting", "ended"}
"""What a training says of itself that may vary as well."""
SETTINGS = {
    "grid": {"resolution": 16},
    "cohort": {"block_size": 2},
    "synthesis": {"slab": 300},
    "models": {"group_mean": {"kind": "group_mean"}},
}


@pytest.fixture
def bucket(s3, faults):
    """A bucket with the images of six people, and a proxy before it."""
    uri = s3()
    write_cohort(f"{uri}/data")
    return uri


def init(study, bucket, folder, **settings):
    config = Path(folder) / "settings.yaml"
    config.write_text(yaml.safe_dump({**SETTINGS, **settings}))
    data = f"{bucket}/data"
    return main(["init", study, "--bids", data, "--rois", f"{data}/rois.nii.gz", "--config", str(config)])


def stages(study):
    return [main([stage, study, "--inline", "--quiet"]) for stage in ("connectomes", "contrasts")]


def rows(study, stage):
    """All receipts of a stage, but for what may vary."""
    receipts = Receipts(Study(study).storage, stage)
    table = receipts.read(receipts.units()).drop(columns=list(VARYING))
    table["qc"] = [{name: value for name, value in qc.items() if name not in TIMES} for qc in table["qc"]]
    return table


def objects(study):
    """Every object of a study but its receipts, by name."""
    storage = Storage(study)
    return storage.read_many([name for name in storage.names("") if not name.startswith("receipts/")])


class TestANetworkThatFails:
    def test_changes_nothing_of_what_is_computed(self, bucket, faults, tmp_path):
        """Images, arrays, tables and receipts go through the same faults."""
        studies = [f"{bucket}/calm", f"{bucket}/storm"]
        for study, share in zip(studies, (0, 0.2), strict=True):
            faults.by_chance(share, seed=4)
            assert init(study, bucket, tmp_path) == 0
            assert stages(study) == [0, 0]
        faults.share = 0
        calm, storm = map(objects, studies)
        assert list(calm) == list(storm)
        assert calm == storm
        for stage in ("connectomes", "contrasts"):
            assert set(rows(studies[0], stage)["status"]) <= {"done", "excluded"}
            pd.testing.assert_frame_equal(*(rows(study, stage) for study in studies))
        assert {kind for kind in KINDS if faults.counts[kind]} == set(KINDS)

    @pytest.mark.parametrize("kind", ["slow_down", "unanswered", "truncated"])
    def test_is_no_subjects_fault_when_it_stays_down(self, bucket, faults, tmp_path, monkeypatch, capsys, kind):
        study = f"{bucket}/study"
        assert init(study, bucket, tmp_path) == 0
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        faults.always, faults.only = kind, "GET /" + bucket.removeprefix("s3://") + "/data/sub-04"
        assert main(["contrasts", study, "--inline", "--quiet"]) == 1
        assert "statmap.nii.gz: got no good answer in 2 attempts" in capsys.readouterr().err
        faults.always = ""
        assert set(rows(study, "contrasts")["subject"]) == {"sub-01", "sub-02"}
        assert ledger.account(Study(study), "contrasts").pending() == ["block-00001", "block-00002"]
        assert main(["contrasts", study, "--inline", "--quiet"]) == 0
        assert rows(study, "contrasts")["status"].tolist() == WITHOUT_MAPS

    def test_leaves_missing_and_forbidden_images_what_they_are(self, bucket, faults, tmp_path):
        study = f"{bucket}/study"
        assert init(study, bucket, tmp_path) == 0
        fsspec.filesystem("s3").rm_file(f"{bucket}/data/sub-01/func/sub-01_task-rest_bold.nii.gz")
        faults.always, faults.only = "forbidden", "/data/sub-04"
        assert main(["connectomes", study, "--inline", "--quiet"]) == 3
        failed = rows(study, "connectomes").set_index("subject").query("status == 'failed'")["message"]
        assert "FileNotFoundError" in failed["sub-01"]
        assert "PermissionError" in failed["sub-04"]
        assert len(failed) == 2


@pytest.mark.parametrize(
    "storage",
    [{"encryption": "AES256"}, {"encryption": "aws:kms"}, {"encryption": "aws:kms", "kms_key": "a-key"}],
)
def test_every_object_of_a_study_is_encrypted_as_it_says(bucket, tmp_path, storage):
    study = f"{bucket}/study"
    assert init(study, bucket, tmp_path, storage=storage) == 0
    assert stages(study) == [0, 0]
    fs = Storage(study).fs
    names = fs.find(study)
    assert len(names) > 40
    for name in names:
        head = fs.call_s3("head_object", Bucket=name.split("/")[0], Key=name.split("/", 1)[1])
        assert head.get("ServerSideEncryption") == storage["encryption"], name
        assert head.get("SSEKMSKeyId") == storage.get("kms_key"), name


def test_how_a_study_is_stored_makes_nothing_due_again(bucket, tmp_path):
    study = f"{bucket}/study"
    assert init(study, bucket, tmp_path) == 0
    assert stages(study) == [0, 0]
    plain = Storage(study)
    text = plain.read(CONFIG).decode().replace("encryption: null", "encryption: AES256").replace("32", "8")
    plain.write(CONFIG, text.encode())
    assert Study(study).storage.config.model_dump() == {"encryption": "AES256", "kms_key": None, "concurrency": 8}
    assert not ledger.account(Study(study), "connectomes").pending()
    assert not ledger.account(Study(study), "contrasts").pending()


def test_nothing_ever_holds_credentials(bucket, faults, tmp_path, monkeypatch, capsys, caplog):
    study, everything = f"{bucket}/study", []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    forget_connections()
    assert init(study, bucket, tmp_path) == 0
    assert stages(study) == [0, 0]
    assert main(["train", study, "--inline", "--quiet"]) == 0
    storage = Storage(study)
    for name, data in storage.read_many(storage.names("")).items():
        everything.append(pd.read_parquet(io.BytesIO(data)).to_csv() if name.endswith(".parquet") else repr(data))
    assert any("model.json" in name for name in storage.names("models"))
    assert main(["init", f"s3://AKIA:{SECRET}@bucket/study", "--bids", f"{bucket}/data", "--rois", "x"]) == 2
    for kind in ("slow_down", "unheard", "forbidden", "expired"):
        faults.always = kind
        assert main(["status", study]) == 1
    everything += [*capsys.readouterr(), caplog.text]
    assert "got no good answer" in everything[-2]
    for secret in (SECRET, TOKEN):
        assert not [text for text in everything if secret in text]


@pytest.mark.slow
def test_a_whole_run_through_faults_is_the_run_without(tools: Tools, finished, arrays, s3, faults):
    root = f"{s3()}/population/study"
    faults.by_chance(0.1, seed=5)
    tools.init(root)
    tools.process("run", root, "--quiet", "--keep-connectomes")
    faults.share = 0
    storage = Storage(root)
    for name, data in arrays(finished).items():
        assert lasting(name, storage.read(name)) == data, name
    calm, storm = Study(str(finished)), Study(root)
    status = storm.status()
    assert (status["pending"] == 0).all()
    assert (status["failed"] == 0).all()
    for stage in status["stage"]:
        pd.testing.assert_frame_equal(rows(str(finished), stage), rows(root, stage))
    assert len(status) == len(calm.status())
    assert {kind for kind in KINDS if faults.counts[kind]} == set(KINDS)
