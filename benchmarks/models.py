"""Is a network worth its time: U-Net, linear model and group mean, fine-tuned and from scratch, on simulated cohorts.

For every seed a cohort of its own is simulated. The first people make the study in which the three models are trained
and compared; other people, with other contrasts, make a second one, in which the network of the first is fine-tuned
(a new output layer) and compared with one from scratch, on 3 and on 10% of the training subjects.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml

from dtg_ray import Study
from dtg_ray.cohort.layouts import bids
from dtg_ray.stages.demo import COHORT, SETTINGS
from dtg_ray.stages.evaluate import read_summary

CONTRASTS, KNOWN = 10, 7
SECOND_PEOPLE = 90
SECOND_COHORT = {"block_size": 8, "validation": 0.1, "test": 0.35}
TRAIN = {**SETTINGS["models"]["unet"]["train"], "cpus_per_worker": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed and a third of the epochs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", help="keep everything here, and go on from what is there")
    options = parser.parse_args()
    seeds, epochs = (1, 8) if options.quick else (options.seeds, TRAIN["epochs"])
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(options.folder or temporary)
        tables = [one_seed(root / f"seed-{seed}", seed, epochs) for seed in range(seeds)]
    table = pd.concat(tables, keys=range(seeds), names=["seed"]).reset_index(level=0)
    print(table.round(3).to_string(index=False))
    means = table.drop(columns="seed").groupby("what", sort=False).mean().round(4)
    print(means.to_string())
    print(json.dumps({"name": "models", "seeds": seeds, **means.to_dict(orient="index")}))


def one_seed(folder: Path, seed: int, epochs: int) -> pd.DataFrame:
    """How well everything that is compared does."""
    data, train = folder / "data", {**TRAIN, "epochs": epochs}
    people = COHORT["subjects"] + SECOND_PEOPLE
    cohort = {**COHORT, "subjects": people, "contrasts": CONTRASTS, "seed": seed}
    dtg("simulate", str(data), *(word for key, value in cohort.items() for word in (f"--{key}", str(value))))
    found = bids.find(str(data))
    names, subjects = found_names(found), [person.subject for person in found.participants]
    first = make_study(folder / "first", data, subjects[: COHORT["subjects"]], {**SETTINGS, "contrasts": names[:KNOWN]})
    dtg("connectomes", first)
    dtg("contrasts", first)
    dtg("train", first)
    dtg("synthesize", first)
    dtg("evaluate", first)
    scratch = {**SETTINGS["models"]["unet"], "train": train}
    settings = {
        **SETTINGS,
        "cohort": SECOND_COHORT,
        "contrasts": names[KNOWN:],
        "models": {"scratch": scratch},
    }
    second = make_study(folder / "second", data, subjects[COHORT["subjects"] :], settings)
    dtg("connectomes", second)
    dtg("contrasts", second)
    if "pretrained" not in Study(second).config.models:
        dtg("import-model", second, f"{first}/models/unet", "--name", "pretrained")
        document = yaml.safe_load(Path(second, "study.yaml").read_text())
        document["models"]["finetuned"] = {"kind": "finetuned", "start": "pretrained", "head": "new", "train": train}
        Path(second, "study.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    ways = ("--finetuned", "finetuned", "--scratch", "scratch")
    dtg("transfer-curve", second, *ways, "--seeds", "1", "--sizes", "3", "10%")
    curve = pd.read_parquet(f"{second}/transfer/finetuned-scratch.parquet")
    curve["what"] = curve["way"] + " on " + curve["subjects"].astype(str)
    models = read_summary(Study(first)).rename(columns={"model": "what"})
    return pd.concat([models, curve])[["what", "r", "identification"]]


def found_names(found: object) -> list[str]:
    """Contrasts of a cohort, in order."""
    return sorted({name for person in found.participants for name in person.contrasts})  # type: ignore[attr-defined]


def make_study(root: Path, data: Path, subjects: list[str], settings: dict) -> str:
    """A study of some of the people."""
    if not (root / "study.yaml").exists():
        root.mkdir(parents=True, exist_ok=True)
        chosen, config = root.parent / f"{root.name}.txt", root.parent / f"{root.name}.yaml"
        chosen.write_text("\n".join(subjects))
        config.write_text(yaml.safe_dump(settings))
        (atlas,) = data.glob("tpl-*_probseg.nii.gz")
        source = ("--bids", str(data), "--rois", str(atlas), "--subjects", str(chosen), "--config", str(config))
        dtg("init", str(root), *source)
    return str(root)


def dtg(*arguments: str) -> None:
    """A verb, in a process of its own."""
    print("dtg", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "dtg_ray.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
