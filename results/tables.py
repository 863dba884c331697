"""Writes the tables of README.md and results/README.md, and the figure of the learning curves, from the runs here.

    python results/tables.py            put the tables into both files, and draw results/networks.png
    python results/tables.py --check    only say whether both files have them as they should be (exit status 1 if not)

A table stands between two marks, <!-- NAME:begin --> and <!-- NAME:end -->. Each trial is a line of trials.csv. Each
full run is a folder with config.json, history.csv and metrics.json. (The table of speed is made by hand.)
"""

import csv
import json
import sys
from decimal import Decimal
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

RESULTS = Path(__file__).parent
ROOT = RESULTS.parent
TUTORIAL = {"WRN-40-2": 0.893, "simplified VGG": 0.864}  # test accuracies that it reports after 400 epochs
COLORS = {"tutorial": "C0", "modern": "C1"}

# The recipes as train.py had them when these runs were made; "settings" in trials.csv are the differences from them.
NAMES = "scheme drop_rate optimizer learning_rate schedule warmup weight_decay label_smoothing epochs batch_size"
RECIPES = {
    ("tutorial", "svgg"): (1, 0.5, "rmsprop", 0.001, "constant", 0.0, 0.0, 0.0, 400, 128),
    ("tutorial", "wrn"): (1, 0.3, "sgd", 0.1, "inverse_time", 0.0, 0.0, 0.0, 400, 128),
    ("modern", "svgg"): (4, 0.0, "sgd", 0.1, "cosine", 0.25, 0.01, 0.1, 20, 128),
    ("modern", "wrn"): (4, 0.0, "sgd", 0.1, "cosine", 0.25, 0.01, 0.1, 20, 128),
}

# ---------------------------------------------------------------- Reading the runs


def read_run(folder):
    """Return the run in `folder` as a dict. What its config.json lacks was not a setting yet, or is the recipe's."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader((folder / "history.csv").read_text(encoding="utf-8").splitlines()))
    recipe, wrn = config.get("recipe", "modern"), f"WRN-{config.get('num_convs')}-{config.get('k_factor')}"
    name = {"svgg": "simplified VGG", "own": "own network"}.get(config["network"], wrn)
    defaults = dict(zip(NAMES.split(), RECIPES[recipe, "svgg" if name == "simplified VGG" else "wrn"], strict=True))
    images, most = config["data"].get("train_count", 50_000), defaults.pop("epochs")  # older runs had all images
    changes = {key: config[key] for key in defaults if config.get(key, defaults[key]) != defaults[key]}
    return {
        "folder": folder,
        "network": name + (", full resolution" if config.get("full_resolution") else ""),
        "recipe": recipe,
        "changes": changes,
        "settings": ", ".join([recipe, *(f"`{key}={value}`" for key, value in changes.items())]),
        "as the recipe": images == 50_000 and config["epochs"] <= most and not changes,
        "epochs": f"{config['epochs']} epochs" + (f" on {images:,} images" if images < 50_000 else ""),
        "seed": config["seed"],
        "format": config.get("dtype_policy", "float32"),
        "metrics": json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        "history": {key: [float(row[key]) for row in rows] for key in rows[0]},
    }


def full_runs():
    """Return the runs of networks/: the tutorial's two networks, the one at full resolution, and our own."""
    runs = [read_run(path.parent) for path in sorted(RESULTS.glob("networks/*/config.json"))]
    return sorted(runs, key=lambda run: (run["network"] == "own network", "full resolution" in run["network"]))


def read_trials():
    """Return {number of the trial: its line of trials.csv}, all as texts."""
    lines = (RESULTS / "trials.csv").read_text(encoding="utf-8").splitlines()
    return {line["trial"]: line for line in csv.DictReader(lines)}


# ---------------------------------------------------------------- The tables


def markdown(titles, rows):
    return "\n".join(f"| {line} |" for line in (titles, " | ".join(["---"] * len(titles.split(" | "))), *rows))


def percent(share, digits=1):
    return f"{100 * Decimal(share):.{digits}f}"


def gain(trial, trials):
    """Return how many points a trial has more or less than the one that it is compared with: +2.1, −0.3 or 0.0."""
    if not trial["against"]:
        return ""
    points = 100 * (Decimal(trial["score"]) - Decimal(trials[trial["against"]]["score"]))  # exact
    return f"{points:+.1f}".replace("-", "−") if points else "0.0"


def results_table():
    """For README.md: each network's first run with each recipe and seed 0, all of our own, and the quick start."""
    chosen, rows = {}, []
    for run in full_runs():
        if run["seed"] == 0 and (run["as the recipe"] or run["network"] == "own network"):
            chosen.setdefault((run["network"], run["settings"]), run)
    for run in (*chosen.values(), read_run(RESULTS / "quickstart")):
        link = f"[{run['network']}]({run['folder'].relative_to(ROOT).as_posix()})"
        accuracy = percent(run["metrics"]["test_accuracy_end_of_training"])
        tutorial = f"{percent(TUTORIAL[run['network']])} % after 400" if run["network"] in TUTORIAL else ""
        recipe = f"{run['metrics']['parameters']:,} | {run['settings']}, {run['epochs']}"
        rows.append(f"{link} | {recipe} | **{accuracy} %** | {tutorial}")
    return markdown("network | parameters | recipe and epochs | test accuracy | the tutorial", rows)


def full_table():
    """All full runs with all seeds, and the two on the sample."""
    rows = []
    for run in (*full_runs(), read_run(RESULTS / "quickstart"), read_run(RESULTS / "own")):
        metrics, trained = run["metrics"], percent(run["history"]["accuracy"][-1])
        link = f"[{run['network']}]({run['folder'].relative_to(RESULTS).as_posix()})"
        score, best = (percent(metrics[f"test_accuracy_{name}"], 2) for name in ("end_of_training", "best_weights"))
        row = f"{link} | {run['settings']} | {run['epochs']} | {run['seed']} | {run['format']} | {trained} | {score}"
        rows.append(f"{row} | {best} | {metrics['seconds_per_epoch']:.0f}")
    titles = "network | recipe | trained for | seed | number format | while training, % | test images, %"
    return markdown(f"{titles} | best weights, % | seconds per epoch", rows)


def ladder_table():
    """From the tutorial's recipe to the modern one, one change at a time."""
    trials, rows = read_trials(), []
    for trial in (trial for trial in trials.values() if trial["group"] == "ladder"):
        settings = f"recipe={trial['recipe']} {trial['settings']} dtype_policy={trial['number_format']}".split()
        pairs = (word.split("=") for word in settings if word != "dtype_policy=float32")
        flags = " ".join(f"--{key.replace('_', '-')} {value}".removesuffix(" True") for key, value in pairs)
        scores = f"{percent(trial['training_accuracy'])} | {percent(trial['score'])} | {gain(trial, trials)}"
        rows.append(f"{trial['trial']} | {trial['change']} | {scores} | `{flags}`")
    return markdown("trial | change | while training, % | held-out images, % | gain | flags", rows)


def trials_table():
    """All other trials, and what each is compared with."""
    trials, rows = read_trials(), []
    for trial in (trial for trial in trials.values() if trial["group"] != "ladder"):
        change = trial["change"] + (f", seed {trial['seed']}" if trial["seed"] != "0" else "")
        scores = f"{percent(trial['training_accuracy'])} | {percent(trial['score'])} | {trial['scored_on']}"
        row = f"{trial['trial']} | {trial['group']} | {change} | {trial['epochs']} | {scores}"
        rows.append(f"{row} | {trial['against']} | {gain(trial, trials)}")
    titles = "trial | network | change | epochs | while training, % | score, % | images for the score"
    return markdown(f"{titles} | compared with trial | gain", rows)


TABLES = {
    ROOT / "README.md": {"results": results_table},
    RESULTS / "README.md": {"ladder": ladder_table, "trials": trials_table, "full": full_table},
}


def with_tables(path, text):
    """Return `text`, the content of `path`, with each of its tables between the table's two marks."""
    for name, table in TABLES[path].items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"error: {path} must have {begin} and {end} once each")
        text = f"{text.split(begin)[0]}{begin}\n{table()}\n{end}{text.split(end)[1]}"
    return text


# ---------------------------------------------------------------- The figure


def plot_networks(path):
    """Write a figure to `path`: a panel for each network; of each recipe and seed the longest run."""
    panels = {run["network"]: {} for run in full_runs()}
    for run in sorted(full_runs(), key=lambda run: len(run["history"]["epoch"])):
        if not run["changes"]:
            panels[run["network"]][run["recipe"], run["seed"]] = run
    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle("solid: test images; dashed: training images, averaged over the epoch")
    axes = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for axis, (network, runs) in zip(axes, panels.items(), strict=True):
        for (recipe, seed), run in runs.items():
            style, history = {"color": COLORS[recipe], "alpha": 0.4 if seed else 1}, run["history"]
            axis.plot(history["epoch"], history["val_accuracy"], **style)
            axis.plot(history["epoch"], history["accuracy"], "--", **style)
        if network in TUTORIAL:
            axis.axhline(TUTORIAL[network], color="grey", linewidth=1)
        axis.set(title=network, xlabel="epoch", ylabel="accuracy")
        axis.grid(alpha=0.3)
    lines = [Line2D([], [], label=f"{recipe} recipe", color=color) for recipe, color in COLORS.items()]
    lines.append(Line2D([], [], label="modern recipe, seed 1", color=COLORS["modern"], alpha=0.4))
    lines.append(Line2D([], [], label="the tutorial's test accuracy after 400 epochs", color="grey", lw=1))
    figure.legend(handles=lines, loc="outside lower center", ncols=4)
    figure.savefig(path)


def main(arguments):
    """Write the tables and the figure, or with --check only say whether the tables are those of the runs."""
    old = {path: path.read_text(encoding="utf-8") for path in TABLES}
    wrong = {path: new for path, text in old.items() if (new := with_tables(path, text)) != text}
    if "--check" in arguments:
        names = " and ".join(path.relative_to(ROOT).as_posix() for path in wrong)
        raise SystemExit(f"error: {names} and the runs disagree: run python results/tables.py" if wrong else 0)
    for path, text in wrong.items():
        path.write_text(text, encoding="utf-8")
    plot_networks(RESULTS / "networks.png")


if __name__ == "__main__":
    main(sys.argv[1:])
