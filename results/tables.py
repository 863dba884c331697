"""Writes the README's tables, and the figure of the learning curves, from the runs in this folder.

    python results/tables.py            put the tables into README.md, and draw networks.png
    python results/tables.py --check    only say whether README.md has them as they should be (exit status 1 if not)

A run here is the folder of a run of train.py without its large files: config.json, history.csv, metrics.json, pictures.

    quickstart/    the README's first command
    networks/      the two networks, trained on all 50,000 images; the score of the test set chose nothing
    ladder/        WRN-16-2 from the tutorial's recipe to the modern one, one change at a time, scored on the 5,000
                   held-out training images. Names sort in the order of the rungs; a name ending in -seedK is a
                   repetition of the same rung with another seed
    tried/         as the ladder; changes that were tried and not taken
    schemes/       as the ladder; the tutorial's recipe with scheme 2 (schemes 1, 3 and 4 are rungs)
    svgg/          as the ladder, but the simplified VGG; each beside the first
    wrn40/         the same for WRN-40-2

The tables under "Speed" are copied from benchmark.txt, which tests/benchmark.py printed; kills.txt is the log of runs
that tests/test_runs.py killed and resumed.
"""

import csv
import functools
import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent
README = RESULTS.parent / "README.md"

sys.path.insert(0, str(RESULTS.parent))
import train

# isort: split
from matplotlib.figure import Figure

# What others report; the sources are in README.md.
TUTORIAL = {"wrn": "89.3% after 400", "svgg": "86.4% after 400"}
PAPER = {"wrn": "94.7% after 200", "svgg": "–"}
LABELS = {  # how the ladder says what was changed
    "scheme": "augmentation scheme",
    "schedule": "learning rate over time",
    "warmup": "warm-up, share of all updates",
    "weight_decay": "weight decay",
    "drop_rate": "dropout",
    "label_smoothing": "label smoothing",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
}

# ---------------------------------------------------------------- Reading the runs


def read_run(folder):
    """Return the run in `folder` as a dict: name, config, metrics, history (a column name -> a list of numbers)."""
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "name": str(folder.relative_to(RESULTS.parent)),
        "config": json.loads((folder / "config.json").read_text()),
        "metrics": json.loads((folder / "metrics.json").read_text()),
        "history": {name: [float(row[name]) for row in rows] for name in rows[0]},
    }


def runs(group):
    """Return the runs below results/`group`, in the order of their names."""
    return [read_run(path.parent) for path in sorted(RESULTS.glob(f"{group}/**/metrics.json"))]


def settings(run):
    """Return what the options of the command line set, without the seed."""
    defaults = train.make_settings({"network": run["config"]["network"]})
    return {name: run["config"].get(name, value) for name, value in defaults.items() if name not in ("seed", "recipe")}


def command(config, leave_out=()):
    """Return the command line that makes a run with the settings in `config`: the options that are not defaults."""
    options = {"network": config["network"]}
    if config["recipe"] != "tutorial":
        options["recipe"] = config["recipe"]
    words = ["python train.py", config["network"]] + (["--recipe", config["recipe"]] if "recipe" in options else [])
    for name, default in train.make_settings(options).items():
        # Runs of earlier versions lack settings that came later; what they lack they did not use.
        if name not in ("network", "recipe", *leave_out) and config.get(name, default) != default:
            flag = f"--{name.replace('_', '-')}"
            words.append(flag if config[name] is True else f"{flag} {config[name]}")
    if config["data"]["sample"]:
        words.append("--data sample")
    return " ".join(words)


# ---------------------------------------------------------------- The tables


def markdown(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def network_name(config):
    return f"WRN-{config['num_convs']}-{config['k_factor']}" if config["network"] == "wrn" else "simplified VGG"


def results_table():
    """Both networks and recipes, and the quick start: the scores on the test set."""
    rows = []
    for run in (*runs("networks"), *runs("quickstart")):
        config, metrics, full = run["config"], run["metrics"], not run["config"]["data"]["sample"]
        rows.append(
            [
                f"[{network_name(config)}]({run['name']})",
                f"{metrics['parameters']:,}",
                f"{config['recipe']}, scheme {config['scheme']}",
                config["epochs"] if full else f"{config['epochs']} on 1,500 images",
                f"**{metrics[metrics['result']]:.1%}**",
                TUTORIAL[config["network"]] if full else "",
                PAPER[config["network"]] if full else "",
                f"`{command(config)}`",
            ]
        )
    titles = ("network", "parameters", "recipe", "epochs", "test accuracy", "the tutorial", "the paper", "command")
    return markdown(titles, rows)


def cost_table():
    """What an epoch of each network costs."""
    rows = []
    for run in runs("networks"):
        metrics = run["metrics"]
        rows.append(
            [
                f"{network_name(run['config'])}, {run['config']['recipe']}",
                f"{metrics['seconds_per_epoch']:.0f}",
                f"{metrics['images_per_second']:.0f}",
                f"{1000 * metrics['cpu_seconds_per_image']:.1f}",
            ]
        )
    return markdown(("run", "seconds an epoch", "images/s", "CPU ms an image"), rows)


def held_out(rung):
    """Return the end-of-training accuracies on the held-out images of the runs of one rung, in per cent."""
    return [100 * run["metrics"]["validation_accuracy_end_of_training"] for run in rung]


def mean(values):
    return sum(values) / len(values)


def show_scores(rung):
    scores = held_out(rung)
    spread = "" if len(scores) == 1 else f" ({min(scores):.1f}–{max(scores):.1f}, {len(scores)} seeds)"
    return f"{mean(scores):.1f}{spread}"


def rungs(group):
    """Return the runs of a group as lists: runs that differ in nothing but the seed are together."""
    together = {}
    for run in runs(group):
        together.setdefault(json.dumps(settings(run)), []).append(run)
    return list(together.values())


def changes(before, after):
    """Return in words how the settings of one run differ from those of another."""
    old, new = settings(before), settings(after)
    changed = [name for name in new if new[name] != old[name]]
    return ", ".join(f"{LABELS[name]}: {old[name]} → {new[name]}" for name in changed)


def comparison_rows(start, others, cumulative):
    """Return a row for each of `others`: the change from `start`, or, if cumulative, from the one before."""
    rows = []
    for rung in others:
        gain = mean(held_out(rung)) - mean(held_out(start))
        trained = mean([100 * run["history"]["accuracy"][-1] for run in rung])
        link = f"[{changes(start[0], rung[0])}]({rung[0]['name']})"
        rows.append([link, f"{trained:.1f}", show_scores(rung), f"{gain:+.1f}", short_command(rung)])
        start = rung if cumulative else start
    return rows


TITLES = ("change", "while training, %", "held-out images, %", "gain", "command")


def short_command(rung):
    """Return the command without the options that all runs of these tables share; README.md names them above."""
    return f"`{command(rung[0]['config'], leave_out=('num_convs', 'epochs', 'holdout', 'no_test'))}`"


def first_row(title, rung):
    trained = mean([100 * run["history"]["accuracy"][-1] for run in rung])
    link = f"[{title}]({rung[0]['name']})"
    return [link, f"{trained:.1f}", show_scores(rung), "", short_command(rung)]


def ladder_table():
    """From the tutorial's recipe to the modern one, one change at a time."""
    first, *others = rungs("ladder")
    rows = [first_row("the tutorial's recipe", first), *comparison_rows(first, others, True)]
    return markdown(("rung", *TITLES), [[i + 1, *row] for i, row in enumerate(rows)])


def tried_table():
    """Changes that were tried and not taken, each beside the rung of the ladder that it was tried on."""

    def distance(rung, other):
        return sum(settings(rung[0])[name] != value for name, value in settings(other[0]).items())

    ladder, rows = rungs("ladder"), []
    for rung in rungs("tried"):
        base = min(reversed(ladder), key=lambda other: distance(other, rung))
        row = first_row(f"rung {ladder.index(base) + 1} of the ladder", base)
        rows += [row] * (row not in rows) + comparison_rows(base, [rung], False)
    return markdown(TITLES, rows)


def schemes_table():
    """The tutorial's recipe with each of the schemes."""
    first, *others = rungs("ladder")
    only_the_scheme = [
        rung
        for rung in (*others, *rungs("schemes"))
        if settings(rung[0]) | {"scheme": 1} == settings(first[0]) | {"scheme": 1}
    ]
    chosen = sorted([first, *only_the_scheme], key=lambda rung: rung[0]["config"]["scheme"])
    rows = [first_row(f"scheme {rung[0]['config']['scheme']}", rung) for rung in chosen]
    titles, keep = (("scheme", *TITLES[1:]), (0, 1, 2, 4))
    return markdown([titles[i] for i in keep], [[row[i] for i in keep] for row in rows])


def trials_table(group):
    """What was tried with one of the two networks: each run of the group beside the first."""
    first, *others = rungs(group)
    title = ", ".join(f"{LABELS[name]} {settings(first[0])[name]}" for name in ("learning_rate", "weight_decay"))
    return markdown(TITLES, [first_row(title, first), *comparison_rows(first, others, False)])


TABLES = {
    "results": results_table,
    "cost": cost_table,
    "ladder": ladder_table,
    "tried": tried_table,
    "schemes": schemes_table,
    "svgg": functools.partial(trials_table, "svgg"),
    "wrn40": functools.partial(trials_table, "wrn40"),
}


def with_tables(text):
    """Return the README `text` with each table between its two marks."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin in text:
            before, rest = text.split(begin)
            text = f"{before}{begin}\n{table()}\n{end}{rest.split(end)[1]}"
    return text


# ---------------------------------------------------------------- The figure


def plot_networks(path):
    """Write a figure to `path`: for each network the accuracy of both recipes after each epoch."""
    figure = Figure(figsize=(12, 4.8))
    axes = figure.subplots(1, 2, sharey=True)
    reported = {"wrn": 0.893, "svgg": 0.864}
    for axis, network in zip(axes, reported, strict=True):
        for run in runs("networks"):
            if run["config"]["network"] == network:
                history, recipe = run["history"], run["config"]["recipe"]
                color = {"tutorial": "C0", "modern": "C1"}[recipe]
                axis.plot(history["epoch"], history["accuracy"], "--", color=color, label=f"{recipe}, training")
                axis.plot(history["epoch"], history["val_accuracy"], color=color, label=f"{recipe}, test")
                axis.set_title(network_name(run["config"]))
        axis.axhline(reported[network], color="grey", linewidth=1)
        axis.text(1, reported[network], "the tutorial after 400 epochs", va="bottom", fontsize=8, color="grey")
        axis.set(xlabel="epoch", ylabel="accuracy")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


def main(arguments):
    text = README.read_text()
    new = with_tables(text)
    if "--check" in arguments:
        raise SystemExit(0 if new == text else "error: README.md disagrees with results/: run python results/tables.py")
    README.write_text(new)
    plot_networks(RESULTS / "networks.png")


if __name__ == "__main__":
    main(sys.argv[1:])
