"""A page as a finished study might have it, and the pieces of it."""

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing
from scipy.ndimage import gaussian_filter

from dtg_ray.imaging.grid import Grid
from dtg_ray.report.page import Facts, Figure, Section, Table, Viewer, Words

MODELS = {"group mean": "#E69F00", "linear": "#56B4E9", "unet": "#009E73", "retest": "#CC79A7"}
HOSTILE = '<script>document.title = "taken"</script><img src=x onerror=alert(1)>"\'&</table>'
N_MAPS = 18
N_LONG = 250


def sample_sections():
    """Seven sections with every kind of part, and one without parts."""
    return [
        Section("summary", "Summary", _summary(), "A network of 1.2 million weights was trained on 40 people."),
        Section("cohort", "Cohort", [funnel_figure(), Table("subjects", "Subjects", "", long_table())]),
        Section("training", "Training", [loss_figure()], "Validation loss was lowest in epoch 61 of 80."),
        Section("nothing", "Nothing", []),
        Section(
            "reconstruction", "Reconstruction", [box_figure(), Table("contrasts", "Contrasts", TABLE, contrasts())]
        ),
        Section("maps", "Maps", [sample_viewer()], "Two people no model has seen."),
        Section("phenotypes", "Phenotypes", [Table("phenotypes", "Prediction", "", phenotypes())]),
        Section("reproduce", "How to reproduce", [Words("Versions are pinned.\n\nThe seed is 1.", code=CODE)]),
    ]


TABLE = "Means over the people of the test split, with the share whose own map fits best."
CODE = """pip install dtg_ray==0.1.0
dtg init study --bids derivatives/ --rois ica.nii.gz --config settings.yaml
dtg run study"""


def _summary():
    return [
        Facts({"people": "160", "trained on": "40", "contrasts": "47", "median r": "0.772", "run time": "5 min 12 s"}),
        Words(
            "Maps of 47 task contrasts were made for 160 people from their resting state. For people no model had seen "
            "they agree with the measured maps as well as a second visit does.\n\n"
            "Read the identification matrices before the means: a model that gives everybody the group's map reaches "
            "high correlations too."
        ),
    ]


def svg(drawing):
    """The bytes of a figure, the same in every run."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "page", "svg.fonttype": "path"}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def box_figure():
    """Wide box plots, as there are many contrasts."""
    rng = np.random.default_rng(0)
    drawing = Drawing(figsize=(9.4, 4.2), layout="constrained")
    axes = drawing.subplots()
    values = {name: rng.normal(0.45 + 0.1 * number, 0.1, (12, 60)) for number, name in enumerate(MODELS)}
    for number, (name, colour) in enumerate(MODELS.items()):
        places = np.arange(12) + 0.2 * (number - 1.5)
        axes.boxplot(
            values[name].T,
            positions=places,
            widths=0.16,
            patch_artist=True,
            boxprops={"facecolor": colour, "lw": 0.6},
            medianprops={"color": "black"},
            flierprops={"marker": ".", "ms": 2},
            label=name,
        )
    axes.set_xticks(range(12), [f"contrast {number}" for number in range(12)], rotation=30, ha="right")
    axes.set_ylabel("r of synthetic and measured map")
    axes.legend(frameon=False, ncols=4, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    numbers = pd.DataFrame({name: values[name].ravel() for name in MODELS})
    alt = "Box plots of r per contrast: retest highest, then unet, linear and group mean."
    return Figure("correlations", "Agreement with the measured maps", TABLE, alt, svg(drawing), "svg", numbers)


def loss_figure():
    """Two curves."""
    epochs = np.arange(1, 81)
    numbers = pd.DataFrame({"epoch": epochs, "training": 1 / epochs**0.5, "validation": 0.1 + 1 / epochs**0.45})
    drawing = Drawing(figsize=(6.4, 3.2), layout="constrained")
    axes = drawing.subplots()
    for name, colour in (("training", "#0072B2"), ("validation", "#D55E00")):
        axes.plot(numbers["epoch"], numbers[name], color=colour, label=name)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    return Figure("loss", "Loss", "Over 80 epochs.", "Both losses fall and level off.", svg(drawing), "svg", numbers)


def funnel_figure():
    """A PNG of 300 dpi without numbers."""
    drawing = Drawing(figsize=(5.2, 2.4), layout="constrained")
    axes = drawing.subplots()
    axes.barh(["found", "with rest", "usable", "test split"][::-1], [180, 172, 160, 108][::-1], color="#0072B2")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("people")
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=300, metadata={"Software": None})
    return Figure(
        "funnel", "Who came in", "From found to used.", "180, 172, 160, 108 people.", buffer.getvalue(), "png"
    )


def contrasts():
    """47 rows: more than are shown without a filter box."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"contrast": [f"TASK_CONTRAST-{number}" for number in range(1, 48)], "subjects": 108})
    for name in ("r", "identification", "dice"):
        table[name] = rng.uniform(-0.2, 0.9, 47)
    table["p"] = np.where(table["r"] > 0.5, 0.00004, rng.uniform(0, 1, 47))
    table.loc[[3, 20], "dice"] = np.nan
    table.loc[5, "contrast"] = HOSTILE
    return table.sample(frac=1, random_state=2)


def long_table():
    """More rows than the page draws at first; the names are such that text and numbers sort differently."""
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "subject": [f"sub-{number}" for number in range(1, N_LONG + 1)],
            "minutes": rng.uniform(3, 30, N_LONG),
            "mean FD, mm": rng.gamma(2, 0.08, N_LONG),
            "usable": rng.random(N_LONG) > 0.1,
            "note": ["motion, or rest;\nwith a line" if number % 9 == 0 else None for number in range(N_LONG)],
        }
    )


def phenotypes():
    """Few rows and many columns."""
    row = {"phenotype": "age", "features": "synthetic:unet", "subjects": 110, "metric": "r", "score": 0.309}
    row |= {"p": 0.005, "family-wise p": 0.048, "lower": 0.11, "upper": 0.47, "folds": 5, "permutations": 1000}
    others = {"phenotype": "sex", "metric": "AUC", "score": 0.512, "p": 0.4, "family-wise p": 1.0}
    return pd.DataFrame([row, row | {"features": "connectome", "score": 0.242}, row | others])


def smooth_maps(grid, count, seed=0):
    """Random maps of a few centimetres' smoothness, (V,) each."""
    rng = np.random.default_rng(seed)
    noise = (gaussian_filter(rng.standard_normal(grid.shape, dtype=np.float32), 4) for _ in range(count))
    return [(6 * volume / volume.std() / 2).ravel()[grid.flat_index] for volume in noise]


def sample_viewer(n_maps=N_MAPS):
    """Maps of the whole brain at 2 mm."""
    grid = Grid.mni152(2)
    names = [f"{subject}, {kind}" for subject in range(n_maps // 2) for kind in ("measured", "synthetic (unet)")]
    maps = dict(zip(names, smooth_maps(grid, n_maps), strict=True))
    return Viewer("people", "Measured and synthetic maps", "TASK_CONTRAST-7 of nine people.", grid, maps)


def hot_voxel(where_mm):
    """A viewer of a coarse grid with one voxel that is not zero, and a second map with another value there."""
    grid = Grid.mni152(4)
    place = int(np.abs(grid.coordinates - where_mm).sum(axis=1).argmin())
    vector = np.zeros(grid.n_voxels)
    vector[place] = 5
    return Viewer("hot", "One voxel", "", grid, {"hot": vector, "cold": -vector / 2})
