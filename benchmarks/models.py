"""Is a network worth its time: U-Net, linear model and group mean, fine-tuned and from scratch, on simulated cohorts.

For every seed a cohort of its own is simulated, in which the three models are trained and compared. A second one, of
other people of the same population with shorter scans, has some of its contrasts: there the network of the first is
fine-tuned, and compared with one from scratch, on 3 and on 10% of the training subjects with equally many steps.
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

CONTRASTS, SHARED = COHORT["contrasts"], 3
SECOND_PEOPLE, SECOND_VOLUMES, SECOND_EPOCHS = 90, 50, 8
SECOND_COHORT = {"block_size": 8, "validation": 0.1, "test": 0.35}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--head", choices=["frozen", "new"], default="frozen", help="how to fine-tune (default: frozen)"
    )
    parser.add_argument("--folder", help="keep everything here, and go on from what is there")
    options = parser.parse_args()
    seeds = 1 if options.quick else options.seeds
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(options.folder or temporary)
        tables = [one_seed(root / f"seed-{seed}", seed, options.head) for seed in range(seeds)]
    table = pd.concat(tables, keys=range(seeds), names=["seed"]).reset_index(level=0)
    print(table.round(3).to_string(index=False))
    means = table.drop(columns="seed").groupby("what", sort=False).mean().round(4)
    print(means.to_string())
    print(json.dumps({"name": "models", "seeds": seeds, **means.to_dict(orient="index")}))


def one_seed(folder: Path, seed: int, head: str) -> pd.DataFrame:
    """How well everything that is compared does."""
    first = prepare(folder / "first", {**COHORT, "seed": seed}, slice(None), SETTINGS)
    for stage in ("train", "synthesize", "evaluate"):
        dtg(stage, first)
    train = {**SETTINGS["models"]["unet"]["train"], "epochs": SECOND_EPOCHS, "cpus_per_worker": 1}
    scratch = {**SETTINGS["models"]["unet"], "train": train}
    people = slice(COHORT["subjects"], None)
    shorter = {**COHORT, "seed": seed, "subjects": people.start + SECOND_PEOPLE, "volumes": SECOND_VOLUMES}
    settings = {**SETTINGS, "cohort": SECOND_COHORT, "models": {"scratch": scratch}}
    second = prepare(folder / "second", shorter, people, settings, shared=SHARED)
    document = yaml.safe_load(Path(second, "study.yaml").read_text())
    if "pretrained" not in document["models"]:
        dtg("import-model", second, f"{first}/models/unet", "--name", "pretrained")
        document = yaml.safe_load(Path(second, "study.yaml").read_text())
    document["models"][head] = {"kind": "finetuned", "start": "pretrained", "head": head, "train": train}
    Path(second, "study.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    ways = ("--finetuned", head, "--scratch", "scratch")
    dtg("transfer-curve", second, *ways, "--seeds", "1", "--sizes", "3", "10%")
    curve = pd.read_parquet(f"{second}/transfer/{head}-scratch.parquet")
    curve["what"] = curve["way"] + " on " + curve["subjects"].astype(str)
    models = read_summary(Study(first)).rename(columns={"model": "what"})
    return pd.concat([models, curve])[["what", "r", "identification"]]


def prepare(root: Path, cohort: dict, people: slice, settings: dict, shared: int = CONTRASTS) -> str:
    """A study of some of the people of a cohort and their first contrasts, with connectomes and maps."""
    if not (root / "study.yaml").exists():
        data = root.parent / f"{root.name}-data"
        dtg("simulate", str(data), *(word for key, value in cohort.items() for word in (f"--{key}", str(value))))
        found = bids.find(str(data)).participants
        names = sorted({name for person in found for name in person.contrasts})
        chosen, config = root.parent / f"{root.name}.txt", root.parent / f"{root.name}.yaml"
        chosen.write_text("\n".join(person.subject for person in found[people]))
        config.write_text(yaml.safe_dump({**settings, "contrasts": names[:shared]}))
        (atlas,) = data.glob("tpl-*_probseg.nii.gz")
        source = ("--bids", str(data), "--rois", str(atlas), "--subjects", str(chosen), "--config", str(config))
        dtg("init", str(root), *source)
    for stage in ("connectomes", "contrasts"):
        dtg(stage, str(root))
    return str(root)


def dtg(*arguments: str) -> None:
    """A verb, in a process of its own."""
    print("dtg", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "dtg_ray.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
