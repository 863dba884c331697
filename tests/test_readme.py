"""README.md keeps its word: its commands work, its links lead somewhere, its numbers are those of the runs."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import augment
import train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# Commands in code blocks and between backticks; the two that begin with `python3 -m venv` contain one each.
COMMANDS = sorted(set(re.findall(r"(?:^|`|/)(python [\w/]+\.py[^`\n&#]*)", README, re.MULTILINE)))
TRAINING = [command for command in COMMANDS if command.startswith("python train.py")]
STEPS = [command for command in COMMANDS if re.match(r"python (data|augment|svgg|wrn)\.py", command)]


def test_readme_has_commands_of_all_five_modules():
    scripts = {shlex.split(command)[1] for command in COMMANDS}
    assert {"data.py", "augment.py", "svgg.py", "wrn.py", "train.py"} <= scripts


@pytest.mark.parametrize("command", TRAINING)
def test_training_command_is_accepted_and_its_network_built(command):
    if "--help" in command:
        with pytest.raises(SystemExit) as exit_:
            train.parse_arguments(shlex.split(command)[2:])
        assert exit_.value.code == 0
        return
    _, options = train.parse_arguments(shlex.split(command)[2:])
    if "resume" not in options:
        settings = train.make_settings(options)
        assert train.build_network(settings).count_params() > 0
        augment.scheme_settings(settings["scheme"])


@pytest.mark.parametrize("command", STEPS)
def test_step_runs_as_written(command, tmp_path, monkeypatch, capsys):
    _, script, *arguments = shlex.split(command)
    if script in ("data.py", "augment.py") and "--data" not in arguments:
        arguments += ["--data", "sample"]  # the tests fetch nothing
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    printed = capsys.readouterr().out
    for path in re.findall(r"figures/\S+\.png", printed):
        assert (tmp_path / path).stat().st_size > 1000
    assert "figures/" in printed or "No graph drawn" in printed


def test_one_epoch_of_the_quick_start_makes_every_promised_file(tmp_path, capsys):
    command = next(command for command in TRAINING if "--data sample" in command)
    arguments = re.sub(r"--epochs \d+", "--epochs 1", command)
    train.main([*shlex.split(arguments)[2:], "--out", str(tmp_path)])
    run_dir = next(tmp_path.glob("*/*"))
    promised = re.findall(r"^\| `([^`]+)`", README.split("## Runs")[1].split("### ")[0], re.MULTILINE)
    assert len(promised) >= 7
    for names in promised:
        assert list(run_dir.glob(names.split("`")[0])), f"README promises {names}"
    assert "<- the result" in capsys.readouterr().out


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_tables_are_those_of_the_runs():
    tables = runpy.run_path(str(ROOT / "results" / "tables.py"))
    assert tables["with_tables"](README) == README
    assert set(re.findall(r"<!-- (\w+):begin -->", README)) == set(tables["TABLES"])
    assert tables["with_tables"](README.replace("%", "")) != README  # that is, it does look


def test_each_result_is_of_the_official_data_with_a_file_for_everything_it_says():
    for metrics in (ROOT / "results").glob("**/metrics.json"):
        config = json.loads((metrics.parent / "config.json").read_text())
        assert config["data"]["official"] or config["data"]["sample"]
        epochs = (metrics.parent / "history.csv").read_text().count("\n") - 1
        assert epochs == config["epochs"]


def test_every_flag_in_the_readme_exists_and_every_flag_is_in_the_readme(capsys):
    with pytest.raises(SystemExit):
        train.parse_arguments(["--help"])
    existing = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    section = README.split("### Flags")[1].split("\n## ")[0]
    described = set(re.findall(r"--[a-z][a-z-]+", section))
    assert existing == described
