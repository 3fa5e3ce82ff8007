"""The report in a few sentences and numbers."""

from __future__ import annotations

from dtg_ray import ledger
from dtg_ray.ledger import Ledger
from dtg_ray.report.page import Facts, Part, Section, Words
from dtg_ray.report.phenotype_charts import SIGNIFICANT
from dtg_ray.results import ALL, Results


def section(results: Results, book: Ledger) -> Section:
    """Who takes part, how good the maps are, what they foretell."""
    facts: dict[str, str] = {"people": f"{len(results.study.cohort):,}"}
    sentences = [
        _people(results, book, facts),
        _agreement(results, book, facts),
        _models(results),
        _phenotypes(results, facts),
    ]
    parts: list[Part] = [Facts(facts), Words("\n\n".join(sentence for sentence in sentences if sentence))]
    return Section("summary", "In short", parts)


def _people(results: Results, book: Ledger, facts: dict[str, str]) -> str:
    study = results.study
    model = results.model
    synthesized = len(book.account(f"synthesize/{model}").subjects("done"))
    troubled = ledger.failures(book)
    failed, excluded = (
        troubled.loc[(troubled["status"] == status) & troubled["subject"].isin(study.cohort.index), "subject"].nunique()
        for status in ("failed", "excluded")
    )
    n_contrasts = len(study.config.maps_of(model))
    facts["with synthetic maps"], facts["contrasts"] = f"{synthesized:,}", str(n_contrasts)
    begun = len(book.account("connectomes").rows) > 0
    nobody = "Nobody failed" if begun else "Nothing was computed yet"
    lost = [f"{failed} failed"] * bool(failed) + [f"{excluded} were excluded by a rule"] * bool(excluded)
    return (
        f"{_take_part(len(study.cohort))} {synthesized:,} of them have synthetic maps of {n_contrasts} "
        f"contrasts by the model {model}. {' and '.join(lost) or nobody}"
        f"{'; the section on the cohort says who and why.' if lost else '.'}"
    )


def _agreement(results: Results, book: Ledger, facts: dict[str, str]) -> str:
    """Of the model that is shown, over contrasts."""
    table, model = results.contrasts, results.model
    rows = table[table["model"] == model] if len(table) else table
    if not len(rows):
        if book.account(f"evaluate/{model}").subjects("excluded"):
            return "No synthetic map was compared with a measured one: too few people held out have both."
        return "Synthetic maps were not compared with measured ones yet: `dtg evaluate` does it."
    n, r, found = int(rows["subjects"].max()), rows["r"].mean(), rows["identification"].mean()
    facts["held out"], facts[f"mean r of {model}"], facts["identified"] = str(n), f"{r:.2f}", f"{found:.0%}"
    return (
        f"In up to {n} people held out (the split test), the maps of {model} correlate with the measured ones by "
        f"r = {r:.2f} on average over contrasts. By their synthetic map, {found:.0%} of these people are found among "
        f"the others (by chance it would be {rows['chance'].mean():.2%})."
    )


def _models(results: Results) -> str:
    """The first network against the linear model."""
    table, model = results.comparisons, results.model
    linear = next((name for name in results.models if results.study.config.models[name].kind == "linear"), None)
    if linear is None or linear == model or not len(table):
        return ""
    rows = table[(table["figure"] == "r") & (table["contrast"] != ALL)]
    pair = rows[rows[["first", "second"]].isin([model, linear]).all(axis=1)]
    if not len(pair):
        return ""
    gain = pair["difference"].where(pair["first"] == model, -pair["difference"])
    holds = pair["q"] <= SIGNIFICANT
    better, worse = int((holds & (gain > 0)).sum()), int((holds & (gain < 0)).sum())
    return (
        f"Against the linear model, {model} agrees better in {better} of {len(pair)} contrasts and worse in {worse} "
        "(paired t tests of r, false discovery rate 5%)."
    )


def _phenotypes(results: Results, facts: dict[str, str]) -> str:
    scores = results.scores
    if not len(scores) or scores["p"].isna().all():
        return ""
    holds = scores[scores["p_family"] <= SIGNIFICANT]
    n_targets = scores["target"].nunique()
    facts["phenotypes predicted"] = f"{holds['target'].nunique()} of {n_targets}"
    text = (
        f"{holds['target'].nunique()} of {n_targets} phenotypes are predicted better than by chance from at least one "
        f"of {scores['features'].nunique()} feature sets (family-wise p of {SIGNIFICANT} over all tests)."
    )
    if not len(holds):
        return text
    best = min(holds.to_dict("records"), key=lambda row: (row["p_family"], row["p"]))
    figure = f"{str(best['metric']).replace('auc', 'AUC')} = {best[best['metric']]:.2f}"
    return f"{text} The clearest is {best['target']} from {best['features']}: {figure}."


def _take_part(n: int) -> str:
    return "1 person takes part." if n == 1 else f"{n:,} people take part."
