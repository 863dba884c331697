"""Writes the tables of README.md and results/README.md, and the figure of the learning curves, from the runs here.

    python results/tables.py            put the tables into both files, and draw results/networks.png
    python results/tables.py --check    only say whether both files have them as they should be (exit status 1 if not)

A table stands between two marks, <!-- NAME:begin --> and <!-- NAME:end -->, and NAME is a key of TABLES. "results" is
for README.md; its links start there. All others are for results/README.md, which also says what the groups of runs are.

The tables under "Speed" in results/README.md are copied from benchmark.txt by hand.
"""

import csv
import functools
import json
import re
import sys
from pathlib import Path

RESULTS = Path(__file__).parent
READMES = (RESULTS.parent / "README.md", RESULTS / "README.md")

sys.path.insert(0, str(RESULTS.parent))
import train

# isort: split
from matplotlib.figure import Figure

TUTORIAL = {"WRN-40-2": 0.893, "simplified VGG": 0.864}  # test accuracies that it reports after 400 epochs
LABELS = {  # how the ladder says what was changed
    "scheme": "augmentation scheme",
    "schedule": "learning rate over time",
    "warmup": "warm-up, share of all updates",
    "weight_decay": "weight decay",
    "drop_rate": "dropout",
    "label_smoothing": "label smoothing",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "full_resolution": "first group at 32×32 pixels",
    "dtype_policy": "computed in",
}

# ---------------------------------------------------------------- Reading the runs


def read_run(folder):
    """Return the run in `folder` as a dict: name, config, metrics, history (a column name -> a list of numbers).

    A trial of a network of one's own has no metrics.json: its score is the last of its history.
    """
    metrics = folder / "metrics.json"
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        "name": folder.relative_to(RESULTS).as_posix(),
        "config": json.loads((folder / "config.json").read_text(encoding="utf-8")),
        "metrics": json.loads(metrics.read_text(encoding="utf-8")) if metrics.exists() else {},
        "history": {name: [float(row[name]) for row in rows] for name in rows[0]},
    }


def runs(group):
    """Return the runs below results/`group` in the order of their names, 10_… after 9_…."""

    def order(path):  # texts and numbers in turn
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.parent.as_posix())]

    return [read_run(path.parent) for path in sorted(RESULTS.glob(f"{group}/**/history.csv"), key=order)]


def network_runs():
    """Return the runs of networks/: the tutorial's, those at full resolution, and last a network of one's own."""

    def order(run):
        return run["config"]["network"] == "own", bool(run["config"].get("full_resolution"))

    return sorted(runs("networks"), key=order)


def settings(run):
    """Return what the flags of the command line set, without the seed."""
    # Older runs lack settings that came later; they had today's default.
    defaults, left_out = train.make_settings({"network": run["config"]["network"]}), ("seed", "recipe", "source")
    return {name: run["config"].get(name, value) for name, value in defaults.items() if name not in left_out}


def command(config, leave_out=()):
    """Return the command line that makes a run with the settings in `config`: the flags that are not defaults."""
    network, recipe = config["network"], config["recipe"]
    words = ["python train.py", network] + ([f"--recipe {recipe}"] if recipe != "tutorial" else [])
    for name, default in train.make_settings({"network": network, "recipe": recipe}).items():
        if name not in ("network", "recipe", "source", *leave_out) and config.get(name, default) != default:
            words.append(train.flag(name) if config[name] is True else f"{train.flag(name)} {config[name]}")
    if config["data"]["sample"]:
        words.append("--data sample")
    return " ".join(words)


# ---------------------------------------------------------------- The tables


def markdown(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def percent(share):
    return f"{100 * share:.1f} %"


def network_name(config):
    seed = f", seed {config['seed']}" if config["seed"] else ""
    if config["network"] in ("svgg", "own"):
        return {"svgg": "simplified VGG", "own": "a network of one's own"}[config["network"]] + seed
    resolution = ", full resolution" if config.get("full_resolution") else ""
    return f"WRN-{config['num_convs']}-{config['k_factor']}{resolution}{seed}"


def results_table():
    """All networks and recipes, and two on the sample: the scores on the test set. For README.md."""
    rows = []
    for run in (*network_runs(), *runs("quickstart"), *runs("own")):
        config, metrics, name = run["config"], run["metrics"], network_name(run["config"])
        own, tutorial = config["network"] == "own", TUTORIAL.get(network_name(config | {"seed": 0}))
        rows.append(
            [
                f"[{name}](results/{run['name']})",
                f"{metrics['parameters']:,}",
                "modern" if own else config["recipe"],
                f"{config['epochs']} on 1,500 images" if config["data"]["sample"] else config["epochs"],
                f"**{percent(metrics[metrics['result']])}**",
                f"{percent(tutorial)} after 400" if tutorial else "",
                f"{config['epochs'] * metrics['seconds_per_epoch'] / 60:.0f}",
                "[below](#train-a-network-of-your-own)" if own else f"`{command(config)}`",
            ]
        )
    titles = ("network", "parameters", "recipe", "epochs", "test accuracy", "the tutorial", "minutes", "command")
    return markdown(titles, rows)


def cost_table():
    """What an epoch of each network costs."""
    rows = []
    for run in network_runs():
        metrics = run["metrics"]
        cpu_seconds = metrics.get("cpu_seconds_per_image")  # newer runs do not measure it
        rows.append(
            [
                f"{network_name(run['config'])}, {run['config'].get('recipe', 'modern')}",
                run["config"].get("dtype_policy", "float32"),  # older runs had nothing else
                f"{metrics['seconds_per_epoch']:.0f}",
                f"{metrics['images_per_second']:.0f}",
                f"{1000 * cpu_seconds:.1f}" if cpu_seconds else "–",
            ]
        )
    return markdown(("run", "computed in", "seconds per epoch", "images/s", "CPU ms per image"), rows)


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
    # Of a switch the label says enough.
    return ", ".join(
        LABELS[name] if new[name] is True else f"{LABELS[name]}: {old[name]} → {new[name]}" for name in changed
    )


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
    """Return the command without the options that all runs of a table share; they are named above the table."""
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


def own_trials_table():
    """What was tried with the network of one's own."""
    rows = []
    for run in runs("own_trials"):
        variant, history, data = run["config"]["variant"], run["history"], run["config"]["data"]
        rows.append(
            [
                len(rows) + 1,
                f"[{variant['front']}]({run['name']})",
                "1" if variant["scale"] == 1 else "1/8",
                *(variant[name] for name in ("label_smoothing", "weight_decay", "epochs")),
                f"{data['train_count']:,}",
                f"{100 * history['accuracy'][-1]:.1f}",
                f"{100 * history['val_accuracy'][-1]:.1f}",
                "held-out" if variant["holdout"] else "test",
            ]
        )
    titles = ("line", "first layer", "scale", "label smoothing", "weight decay", "epochs", "training images")
    return markdown((*titles, TITLES[1], "score, %", "images for the score"), rows)


TABLES = {
    "results": results_table,
    "cost": cost_table,
    "ladder": ladder_table,
    "tried": tried_table,
    "schemes": schemes_table,
    "svgg_before": functools.partial(trials_table, "svgg/before"),
    "svgg_now": functools.partial(trials_table, "svgg/now"),
    "wrn40": functools.partial(trials_table, "wrn40"),
    "own_trials": own_trials_table,
}


def with_tables(text):
    """Return `text` with each table that it has marks for between its two marks."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin in text:
            before, rest = text.split(begin)
            text = f"{before}{begin}\n{table()}\n{end}{rest.split(end)[1]}"
    return text


# ---------------------------------------------------------------- The figure


def plot_networks(path):
    """Write a figure to `path`: for each network the accuracy after each epoch, one colour for each setting."""
    together = {}
    for run in network_runs():
        together.setdefault(network_name(run["config"] | {"seed": 0}), []).append(run)
    figure = Figure(figsize=(14, 9), layout="constrained")
    figure.suptitle("solid: test images; dashed: training images, averaged over the epoch")
    colors = {"tutorial": "C0", "modern": "C1"}
    for axis, (network, group) in zip(figure.subplots(2, 2, sharey=True).flat, together.items(), strict=True):
        for run in group:
            config, history = run["config"], run["history"]
            label = recipe = config.get("recipe", "modern")
            defaults = train.RECIPES[recipe, "svgg" if config["network"] == "svgg" else "wrn"]
            for name in ("drop_rate", "weight_decay", "label_smoothing"):
                value = config.get(name, defaults[name])
                label += f", {LABELS[name]} {value}" if value != defaults[name] else ""
            label += f", {config['epochs']} epochs" if config["epochs"] != 20 else ""
            color = colors.setdefault(label, f"C{len(colors)}")
            label += f", seed {config['seed']}" if config["seed"] else ""
            style = {"color": color, "alpha": 0.4 if config["seed"] else 1}
            axis.plot(history["epoch"], history["val_accuracy"], label=label, **style)
            axis.plot(history["epoch"], history["accuracy"], "--", **style)
        axis.set_title(network)
        if network in TUTORIAL:
            axis.axhline(TUTORIAL[network], color="grey", linewidth=1)
            axis.text(1, TUTORIAL[network], "the tutorial after 400 epochs", va="bottom", fontsize=8, color="grey")
        axis.set(xlabel="epoch", ylabel="accuracy")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    figure.savefig(path)


def main(arguments):
    """Write the tables and the figure, or with --check only say whether the tables are those of the runs."""
    texts = {path: path.read_text(encoding="utf-8") for path in READMES}
    wrong = [path for path, text in texts.items() if with_tables(text) != text]
    if "--check" in arguments:
        if wrong:
            names = " and ".join(path.relative_to(RESULTS.parent).as_posix() for path in wrong)
            raise SystemExit(f"error: {names} and the runs disagree: run python results/tables.py")
        return
    for path in wrong:
        path.write_text(with_tables(texts[path]), encoding="utf-8")
    plot_networks(RESULTS / "networks.png")


if __name__ == "__main__":
    main(sys.argv[1:])
