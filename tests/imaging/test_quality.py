"""Quality figures and exclusion rules."""

from dataclasses import fields

import pytest

from dtg_ray.imaging.quality import Rules, RunQuality, broken_rule, summarize

GOOD = {
    "minutes": 6.0,
    "tsnr": 50.0,
    "coverage": 0.98,
    "constant": 0.01,
    "motion": 0.1,
    "scrubbed": 0.05,
    "mean_abs_r": 0.2,
}


def run(**figures):
    values = {"volumes": 100, "used": 90, "tr": 2.0, "coverage": 0.9, "constant": 0.1, "tsnr": 40.0, "motion": 0.2}
    return RunQuality(**{**values, **figures})


class TestSummary:
    def test_of_one_run_is_its_own(self):
        assert summarize([run()]) == pytest.approx(
            {
                "runs": 1,
                "volumes": 100,
                "used": 90,
                "tr": 2,
                "minutes": 3,
                "coverage": 0.9,
                "constant": 0.1,
                "tsnr": 40,
                "scrubbed": 0.1,
                "motion": 0.2,
            }
        )

    def test_runs_of_different_lengths_and_repetition_times_lie_side_by_side(self):
        longer = run(volumes=300, used=300, tr=0.8, coverage=0.95, constant=0.2, tsnr=80.0, motion=0.4)
        assert summarize([run(), longer]) == pytest.approx(
            {
                "runs": 2,
                "volumes": 400,
                "used": 390,
                "tr": 2,
                "minutes": (90 * 2 + 300 * 0.8) / 60,
                "coverage": 0.9,
                "constant": 0.2,
                "tsnr": 70,
                "scrubbed": 0.025,
                "motion": 0.35,
            }
        )

    def test_what_is_not_known_of_a_run_is_not_known_of_the_subject(self):
        assert "motion" not in summarize([run(), run(motion=float("nan"))])
        assert "minutes" not in summarize([run(), run(tr=0.0)])

    def test_all_figures_are_plain_numbers_as_receipts_hold_them(self):
        assert all(type(value) is float for value in summarize([run(), run()]).values())


class TestRules:
    def test_nothing_is_excluded_by_default(self):
        assert broken_rule({}, Rules()) == ""

    def test_good_figures_break_no_rule(self):
        assert broken_rule(GOOD, Rules(5, 40, 0.9, 0.05, 0.5, 0.3, 0.6)) == ""

    @pytest.mark.parametrize(
        ("rule", "limit", "words"),
        [
            ("minimum_minutes", 7, "got 6, expected at least 7"),
            ("minimum_tsnr", 51, "got 50, expected at least 51"),
            ("minimum_coverage", 0.99, "got 0.98, expected at least 0.99"),
            ("maximum_constant", 0.001, "got 0.01, expected at most 0.001"),
            ("maximum_motion", 0.05, "got 0.1, expected at most 0.05"),
            ("maximum_scrubbed", 0.01, "got 0.05, expected at most 0.01"),
            ("maximum_mean_abs_r", 0.1, "got 0.2, expected at most 0.1"),
        ],
    )
    def test_each_rule_excludes_by_name_and_lets_its_limit_pass(self, rule, limit, words):
        assert broken_rule(GOOD, Rules(**{rule: limit})) == f"{rule}: {words}"
        figure = rule.partition("_")[2]
        assert broken_rule(GOOD, Rules(**{rule: GOOD[figure]})) == ""

    @pytest.mark.parametrize("rule", [item.name for item in fields(Rules)])
    def test_a_figure_that_is_not_known_breaks_its_rule(self, rule):
        figure = rule.partition("_")[2]
        assert broken_rule({}, Rules(**{rule: 0.5})) == f"{rule}: {figure} is not known, expected it to be checked"
