"""Writes the README's table of results from the runs in this folder.

    python results/tables.py            put the table into README.md
    python results/tables.py --check    only say whether README.md has it as it should be (exit status 1 if not)

A run here is the folder of a run of train.py without its large files: config.json, history.csv, metrics.json, pictures.
"""

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent
README = RESULTS.parent / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

sys.path.insert(0, str(RESULTS.parent))
import train


def runs():
    """Return [(name, config, metrics)] of all runs in this folder, the longest training first."""
    found = []
    for path in RESULTS.glob("*/metrics.json"):
        config = json.loads((path.parent / "config.json").read_text())
        found.append((path.parent.name, config, json.loads(path.read_text())))
    return sorted(found, key=lambda run: (-run[1]["epochs"], run[0]))


def command(config):
    """Return the command line that makes a run with the settings in `config`: the options that are not defaults."""
    options = {"network": config["network"]}
    if config["recipe"] != "tutorial":
        options["recipe"] = config["recipe"]
    defaults = train.make_settings(options)
    words = ["python train.py", config["network"]] + (["--recipe", config["recipe"]] if "recipe" in options else [])
    for name, default in defaults.items():
        if name not in ("network", "recipe") and config[name] != default:
            flag = f"--{name.replace('_', '-')}"
            words.append(flag if config[name] is True else f"{flag} {config[name]}")
    if config["data"]["sample"]:
        words.append("--data sample")
    return " ".join(words)


def table():
    """Return the table of results as Markdown."""
    lines = [
        "| network | parameters | recipe | epochs | test accuracy | minutes an epoch (CPU ms an image) | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, config, metrics in runs():
        size = f"WRN-{config['num_convs']}-{config['k_factor']}" if config["network"] == "wrn" else "simplified VGG"
        time = f"{metrics['seconds_per_epoch'] / 60:.1f} ({1000 * metrics['cpu_seconds_per_image']:.1f})"
        cells = [
            f"[{size}](results/{name})",
            f"{metrics['parameters']:,}",
            f"{config['recipe']}, scheme {config['scheme']}",
            f"{config['epochs']}{' on the sample' if config['data']['sample'] else ''}",
            f"{metrics[metrics['result']]:.1%}",
            time,
            f"`{command(config)}`",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_table(text):
    """Return the README `text` with the table between its two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments):
    text = README.read_text()
    new = with_table(text)
    if "--check" in arguments:
        raise SystemExit(0 if new == text else "error: README.md disagrees with results/: run python results/tables.py")
    README.write_text(new)


if __name__ == "__main__":
    main(sys.argv[1:])
