"""study.yaml: what it may say, what it says by default, and its fingerprint."""

import itertools
import os
import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError

from dtg_ray.config import (
    BaselineConfig,
    ConnectomeConfig,
    NetworkConfig,
    StudyConfig,
    TrainConfig,
    fingerprint,
    merge,
    parse,
    parse_saved,
    read_yaml,
    to_yaml,
)
from dtg_ray.config.study import LATER
from dtg_ray.errors import ConfigError

MINIMAL = {"rois": ["rois.nii.gz"], "contrasts": ["LH", "RH"]}


class TestDefaults:
    def test_are_those_of_the_published_model(self):
        assert NetworkConfig().model_dump(exclude={"train"}) == {
            "kind": "network",
            "architecture": "attention_unet",
            "depth": 1,
            "width": 64,
            "convs_per_block": 1,
            "activation": "relu",
            "norm": "batch",
        }
        train = TrainConfig()
        assert (train.loss, train.epochs, train.batch_size, train.learning_rate) == ("crr", 100, 10, 1e-3)
        prediction = parse(MINIMAL).prediction
        assert (prediction.folds, prediction.seed, prediction.alpha) == (5, 42, "features/samples")
        assert prediction.permutations == 1000

    def test_make_a_whole_study(self):
        config = parse(MINIMAL)
        assert list(config.models) == ["group_mean", "linear", "unet"]
        assert config.grid.resolution == 2
        assert config.feature_sets() == ("synthetic:unet", "measured", "connectome")

    def test_of_one_study_are_not_those_of_another(self):
        one, other = parse(MINIMAL), parse(MINIMAL)
        one.models["mine"] = BaselineConfig(kind="linear")
        assert "mine" not in other.models
        assert "mine" not in parse(MINIMAL).models

    def test_are_written_out(self):
        config = parse(MINIMAL)
        document = read_yaml(to_yaml(config), "study.yaml")
        assert document == config.model_dump(mode="json")
        assert parse(document) == config


PLACES = [
    ((), "grit"),
    (("grid",), "resolutoin"),
    (("cohort",), "blocksize"),
    (("connectomes",), "window"),
    (("models", "unet"), "witdh"),
    (("models", "unet", "train"), "lr"),
    (("models", "linear"), "width"),
    (("synthesis",), "slabs"),
    (("prediction",), "fold"),
]


@pytest.mark.parametrize(("place", "key"), PLACES)
def test_an_unknown_key_is_an_error_that_names_it(place, key):
    document = parse(MINIMAL).model_dump(mode="json")
    inner = document
    for name in place:
        inner = inner[name]
    inner[key] = 1
    with pytest.raises(ConfigError, match=f"{'.'.join([*place, key])}: Extra inputs are not permitted") as caught:
        parse(document)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rois": None}, "rois: "),
        ({"version": 2}, "version: Input should be 1"),
        ({"grid": {"resolution": 0}}, "grid.resolution: "),
        ({"grid": {"resolution": 21}}, "grid.resolution: "),
        ({"cohort": {"block_size": 0}}, "cohort.block_size: "),
        ({"cohort": {"validation": 0.5, "test": 0.5}}, r"got validation \+ test = 1, expected less than 1"),
        ({"connectomes": {"tr": -1}}, "connectomes.tr: "),
        ({"connectomes": {"interpolation": "cubic"}}, "connectomes.interpolation: "),
        ({"models": {}}, "models: "),
        ({"models": {"a/b": {"kind": "linear"}}}, "models.a/b"),
        ({"models": {"../up": {"kind": "linear"}}}, "models.../up"),
        ({"models": {"x": {"kind": "magic"}}}, "models.x: .*magic"),
        ({"models": {"x": {"width": 3}}}, "models.x: "),
        ({"models": {"x": {"kind": "network", "train": {"batch_size": 1}}}}, "batch_size: "),
        ({"prediction": {"features": ["synthetic:resnet"]}}, "synthetic:resnet: got model 'resnet', expected one of"),
        ({"prediction": {"features": ["synthetic:resnet:*"]}}, "synthetic:resnet: got model 'resnet', expected one of"),
        ({"prediction": {"features": ["measured:FACES"]}}, "measured:FACES: got contrast 'FACES', expected one of"),
        ({"prediction": {"features": ["both"]}}, "got 'both', expected synthetic:MODEL, .* or the name of a stack"),
        ({"prediction": {"features": ["measured", "measured"]}}, r"got several that would be called \['measured'\]"),
        ({"prediction": {"stacks": {"both": {"of": ["synthetic"]}}}}, "got 'synthetic', expected synthetic:MODEL"),
        ({"prediction": {"stacks": {"both": {"of": []}}}}, "prediction.stacks.both.of: "),
        ({"prediction": {"stacks": {"connectome": {"of": ["measured"]}}}}, "got a stack called connectome, expected"),
        ({"prediction": {"alpha": "many"}}, "prediction.alpha"),
        ({"prediction": {"alpha": 0}}, "prediction.alpha: .*got 0.0, expected numbers greater than 0"),
        ({"prediction": {"alpha": []}}, "prediction.alpha: .*expected numbers greater than 0"),
        ({"prediction": {"alpha": [1, -1]}}, "prediction.alpha: .*expected numbers greater than 0"),
        ({"prediction": {"folds": 1}}, "prediction.folds: "),
        ({"prediction": {"tiles": 0}}, "prediction.tiles: "),
        ({"prediction": {"tiles": 9, "alpha": [1, 2]}}, "prediction: .*tiles: got 9 and several alpha .*expected one"),
        ({"prediction": {"targets": {"age": {"kind": "ordinal"}}}}, "prediction.targets.age.kind: "),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_place(changes, message):
    with pytest.raises(ConfigError, match=f"study.yaml does not hold: .*{message}"):
        parse({**MINIMAL, **changes})


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ConfigError, match=r"rois: .*; contrasts: .*; grid.resolution: .*; wrong: "):
        parse({"grid": {"resolution": -1}, "wrong": 1})


def test_window_minutes_alone_would_use_one_window_of_each_person():
    with pytest.raises(ConfigError, match="got window_minutes without windows"):
        parse({**MINIMAL, "connectomes": {"window_minutes": 5}})
    assert parse({**MINIMAL, "connectomes": {"window_minutes": 5, "windows": 3}}).connectomes.windows == 3


def test_a_config_is_frozen():
    for config, name in ((parse(MINIMAL), "grid"), (ConnectomeConfig(), "windows"), (TrainConfig(), "seed")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, name, 1)


class TestIngredients:
    """What `prediction.features` may say, of a study with two contrasts and the models linear, unet and group_mean."""

    CONTRASTS = ("EMOTION_FACES", "MOTOR_LH")

    def config(self, **prediction):
        return parse({**MINIMAL, "contrasts": list(self.CONTRASTS), "prediction": prediction})

    def test_an_asterisk_is_one_for_each_contrast(self):
        config = self.config(features=["synthetic:linear:*", "measured:*", "connectome"])
        assert config.feature_sets() == (
            *(f"synthetic:linear:{contrast}" for contrast in self.CONTRASTS),
            *(f"measured:{contrast}" for contrast in self.CONTRASTS),
            "connectome",
        )

    def test_stacks_are_side_by_side_with_a_mask_of_their_own(self):
        stacks = {"both": {"of": ["measured:MOTOR_LH", "connectome"], "mask": "brain"}, "plain": {"of": ["measured"]}}
        config = self.config(features=["both", "plain", "measured"], stacks=stacks)
        assert [str(part) for part in config.sources_of("both")] == ["measured:MOTOR_LH", "connectome"]
        assert [part.stage for part in config.sources_of("both")] == ["contrasts", "connectomes"]
        assert [config.mask_of(name) for name in ("both", "plain", "measured")] == [
            "brain",
            "grey_matter",
            "grey_matter",
        ]

    def test_stacks_are_among_the_defaults(self):
        assert self.config(stacks={"both": {"of": ["measured", "connectome"]}}).feature_sets()[-1] == "both"

    def test_are_made_by_the_stages_of_their_models(self):
        (part,) = self.config().sources_of("synthetic:linear:MOTOR_LH")
        assert (part.stage, part.contrast) == ("synthesize/linear", "MOTOR_LH")


class TestTargets:
    def test_a_list_is_a_mapping_without_settings(self):
        listed = parse({**MINIMAL, "prediction": {"targets": ["age", "sex"]}})
        mapped = parse({**MINIMAL, "prediction": {"targets": {"age": {}, "sex": {}}}})
        assert listed == mapped

    def test_confounds_are_everybodys_but_for_those_with_their_own(self):
        targets = {"age": {}, "g": {}, "health": {"confounds": []}, "sex": {"kind": "classification"}}
        config = parse({**MINIMAL, "prediction": {"targets": targets, "confounds": ["age", "site"]}}).prediction
        of = {name: config.confounds_of(name) for name in targets}
        assert of == {"age": ("site",), "g": ("age", "site"), "health": (), "sex": ("age", "site")}
        assert [config.kind_of(name) for name in targets] == [*["regression"] * 3, "classification"]

    def test_depend_on_the_columns_of_blocks_and_groups(self):
        columns = {"groups": "family", "within": "site", "whole": "family", "fold_column": "fold"}
        config = parse({**MINIMAL, "prediction": {"targets": ["g"], "confounds": ["age"], **columns}}).prediction
        assert set(config.columns_of("g")) == {"g", "age", "family", "site", "fold"}

    @pytest.mark.parametrize("alpha", [3, 0.5, "features/samples", [0.1, 10]])
    def test_a_penalty_is_a_number_or_the_published_or_several(self, alpha):
        parsed = parse({**MINIMAL, "prediction": {"alpha": alpha}}).prediction.alpha
        assert parsed == (tuple(alpha) if isinstance(alpha, list) else alpha)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"batch_size": 5, "workers": 2}, "batch_size 5 for 2 workers, expected two subjects each"),
        ({"batch_size": 4, "workers": 4}, "batch_size 4 for 4 workers, expected two subjects each"),
        ({"batch_size": 5, "workers": 2, "loss": "mse"}, "batch_size 5 for 2 workers, expected equal shares"),
        (
            {"batch_size": 4, "global_batch": True, "accumulate": 2},
            "global_batch with accumulate, expected one of them",
        ),
    ],
)
def test_workers_have_to_share_a_batch(train, message):
    with pytest.raises(ConfigError, match=f"models.unet.train: .*{message}"):
        parse({**MINIMAL, "models": {"unet": {"kind": "network", "train": train}}})


@pytest.mark.parametrize(
    "train", [{"batch_size": 4, "workers": 4, "global_batch": True}, {"batch_size": 4, "workers": 4, "loss": "mse"}]
)
def test_one_subject_is_enough_for_a_worker_that_does_not_contrast(train):
    assert TrainConfig(**train).batch_size == 4


IMPORTED = {"kind": "imported", "source": "x.ckpt", "sha256": "0", "contrasts": ["RH", "FOOT"]}


def finetuned(start, head="frozen"):
    return {"kind": "finetuned", "start": start, "head": head}


class TestFinetuned:
    def test_models_predict_the_contrasts_of_their_start_or_those_of_the_study(self):
        models = {
            "net": {"kind": "network"},
            "other": IMPORTED,
            "kept": finetuned("other"),
            "again": finetuned("kept"),
            "new": finetuned("other", "new"),
        }
        config = parse({**MINIMAL, "models": models})
        predicted = {name: config.contrasts_of(name) for name in models}
        theirs, ours = ("RH", "FOOT"), ("LH", "RH")
        assert predicted == {"net": ours, "other": theirs, "kept": theirs, "again": theirs, "new": ours}

    @pytest.mark.parametrize(
        ("models", "message"),
        [
            (
                {"a": finetuned("b"), "b": {"kind": "network"}},
                r"models.a.start: got 'b', expected a network that stands",
            ),
            ({"a": finetuned("a")}, "models.a.start: got 'a', expected a network that stands before it"),
            ({"b": {"kind": "linear"}, "a": finetuned("b")}, "models.a.start: got 'b', expected a network"),
            (
                {"b": {**IMPORTED, "contrasts": ["FOOT"]}, "a": finetuned("b")},
                "models.a: got no contrast of this study that b predicts",
            ),
        ],
    )
    def test_models_need_a_start_that_fits(self, models, message):
        with pytest.raises(ConfigError, match=message):
            parse({**MINIMAL, "models": models})


class TestFeatureSets:
    def test_given_ones_are_kept(self):
        config = parse({**MINIMAL, "prediction": {"features": ["measured", "synthetic:linear"]}})
        assert config.feature_sets() == ("measured", "synthetic:linear")

    def test_a_second_visit_is_none_unless_asked_for(self):
        retest, mean = {"again": {"kind": "retest"}}, {"mean": {"kind": "group_mean"}}
        assert parse({**MINIMAL, "models": {**retest, **mean}}).feature_sets()[0] == "synthetic:mean"
        assert parse({**MINIMAL, "models": retest}).feature_sets() == ("measured", "connectome")
        features = {"features": ["synthetic:again"]}
        assert parse({**MINIMAL, "models": retest, "prediction": features}).feature_sets() == ("synthetic:again",)

    def test_without_a_network_the_first_model_is_taken(self):
        config = parse({**MINIMAL, "models": {"mean": {"kind": "group_mean"}, "lin": {"kind": "linear"}}})
        assert config.feature_sets() == ("synthetic:mean", "measured", "connectome")


class TestYAML:
    def test_nothing_is_no_settings(self):
        assert read_yaml("# nothing", "x.yaml") == {}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: [1", "x.yaml: not YAML"),
            ("- a\n- b", "x.yaml: got a list, expected a mapping"),
            ("text", "x.yaml: got a str, expected a mapping"),
            ("!!python/object/apply:os.getcwd []", "x.yaml: not YAML"),
        ],
    )
    def test_what_is_no_mapping_is_refused(self, text, message):
        with pytest.raises(ConfigError, match=message):
            read_yaml(text, "x.yaml")


class TestMerge:
    def test_goes_mapping_by_mapping(self):
        base = {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": 3}
        changes = {"a": {"y": {"w": 5}}, "b": [3], "d": {"e": 1}}
        assert merge(base, changes) == {"a": {"x": 1, "y": {"z": 2, "w": 5}}, "b": [3], "c": 3, "d": {"e": 1}}

    def test_leaves_both_alone(self):
        base, changes = {"a": {"x": 1}}, {"a": {"y": 2}}
        merge(base, changes)
        assert (base, changes) == ({"a": {"x": 1}}, {"a": {"y": 2}})

    def test_something_else_replaces_a_mapping(self):
        assert merge({"a": {"x": 1}}, {"a": None}) == {"a": None}
        assert merge({"a": None}, {"a": {"x": 1}}) == {"a": {"x": 1}}


class TestFingerprint:
    def test_does_not_depend_on_the_order_of_keys(self):
        items = [("a", 1), ("b", [1, {"x": None, "y": 2.5}]), ("c", "ä")]
        assert len({fingerprint(dict(order)) for order in itertools.permutations(items)}) == 1

    def test_a_config_is_its_contents(self):
        config = parse(MINIMAL)
        assert fingerprint(config) == fingerprint(config.model_dump(mode="json"))
        assert fingerprint(config) == fingerprint(parse(read_yaml(to_yaml(config), "")))

    @pytest.mark.parametrize(
        "other",
        [(1, "a"), ("a", 2), ("a",), ("a", 1, None), ("a", "1"), (["a", 1],), ("a1",)],
    )
    def test_tells_apart(self, other):
        assert fingerprint(*other) != fingerprint("a", 1)

    def test_every_setting_counts(self):
        """Whatever decides what is computed changes the fingerprint."""
        base = parse(MINIMAL).model_dump(mode="json")
        changes = [
            {"grid": {"resolution": 3}},
            {"cohort": {"seed": 1}},
            {"connectomes": {"windows": 2}},
            {"models": {"unet": {"width": 8}}},
            {"models": {"unet": {"train": {"seed": 1}}}},
            {"synthesis": {"slab": 8}},
            {"prediction": {"folds": 3}},
            {"contrasts": ["RH", "LH"]},
        ]
        hashes = {fingerprint(parse(merge(base, change))) for change in ({}, *changes)}
        assert len(hashes) == len(changes) + 1

    def test_is_the_same_in_every_process_and_every_year(self):
        """Receipts outlive processes and versions; Python's own hash would not."""
        text = "from dtg_ray.config import fingerprint as f; print(f('a', 1, {'y': 0.1, 'x': [True, None, 'ä']}))"
        values = {
            subprocess.run(
                [sys.executable, "-c", text],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for seed in ("1", "2")
        }
        assert values == {"e9376aabebf629f9"}


def test_every_setting_of_a_study_has_a_place_in_the_file():
    assert set(parse(MINIMAL).model_dump()) == set(StudyConfig.model_fields)


class TestSaved:
    @pytest.mark.parametrize("name", ["prediction", "synthesis", "storage"])
    def test_a_section_that_is_not_there_is_told(self, name):
        document = parse(MINIMAL).model_dump(mode="json")
        del document[name]
        with pytest.raises(ConfigError, match=f"x.yaml: got no {name}, expected every section"):
            parse_saved(yaml.safe_dump(document).encode(), "x.yaml")

    @pytest.mark.parametrize("name", LATER)
    def test_of_an_earlier_version_means_the_defaults(self, name):
        document = parse(MINIMAL).model_dump(mode="json")
        del document[name]
        assert parse_saved(yaml.safe_dump(document).encode(), "x.yaml") == parse(MINIMAL)
