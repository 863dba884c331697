"""README.md and results/README.md keep their word: commands and code work, links lead somewhere, numbers have runs."""

import json
import re
import runpy
import shlex
import shutil
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import augment
import data
import train

ROOT = Path(__file__).parent.parent
README, NOTEBOOK = (ROOT / "README.md").read_text("utf-8"), (ROOT / "results" / "README.md").read_text("utf-8")
COMMANDS = sorted(set(re.findall(r"(?:^|`|/)(python [\w/]+\.py[^`\n&#]*)", README + NOTEBOOK, re.MULTILINE)))
TRAINING = [command for command in COMMANDS if command.startswith("python train.py") and "--help" not in command]
STEPS = [command for command in COMMANDS if re.match(r"python (data|augment|svgg|wrn)\.py", command)]
BUILT = set()
CODE = re.findall(r"^```py\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def code_with(text):
    (block,) = (block for block in CODE if text in block)
    return block


# ---------------------------------------------------------------- Commands and code


def test_readme_has_commands_of_all_five_modules_the_first_within_fifteen_lines():
    scripts = {shlex.split(command)[1] for command in COMMANDS}
    assert {"data.py", "augment.py", "svgg.py", "wrn.py", "train.py"} <= scripts
    assert "python train.py" in "\n".join(README.splitlines()[:15])


@pytest.mark.parametrize("command", TRAINING)
def test_training_command_is_accepted_and_its_network_built(command):
    words = shlex.split(command)[2:]
    given = vars(train.make_parser().parse_args(words))
    if given["network"]:
        settings = train.make_settings(given)
        augment.scheme_settings(settings["scheme"])
        train.make_optimizer(settings, 1)
        size = tuple(settings[name] for name in ("network", "num_convs", "k_factor", "full_resolution"))
        if size not in BUILT:  # building takes a second or two
            assert train.build_network(settings).count_params() > 0
            BUILT.add(size)


@pytest.mark.parametrize(
    "command", [pytest.param(step, marks=[pytest.mark.long] * ("augment" in step)) for step in STEPS]
)
def test_step_runs_as_written(command, tmp_path, monkeypatch, capsys):
    _, script, *arguments = shlex.split(command)
    if script in ("data.py", "augment.py") and "--data" not in arguments:
        arguments += ["--data", "sample"]  # the tests fetch nothing
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    module = runpy.run_path(str(ROOT / script), run_name="__main__")
    printed = capsys.readouterr().out
    promised = re.findall(r"^    (.*params: .*)$", module["__doc__"], re.MULTILINE)
    assert len(promised) == (3 if script in ("svgg.py", "wrn.py") else 0)
    assert all(line in printed for line in promised)
    for path in re.findall(r"figures/\S+\.png", printed):
        assert (tmp_path / path).stat().st_size > 1000
    assert "figures/" in printed or "No graph drawn" in printed


@pytest.mark.long
def test_one_epoch_of_the_quick_start_makes_every_promised_file(tmp_path, capsys):
    command = next(command for command in TRAINING if "--data sample" in command and "--batch-size 32" in command)
    arguments = re.sub(r"--epochs \d+", "--epochs 1", command)
    train.main([*shlex.split(arguments)[2:], "--out", str(tmp_path)])
    run_dir = next(tmp_path.glob("*/*"))
    section = README.split("## What a run leaves behind")[1].split("\n## ")[0]
    promised = [
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall("`(.+?)`", row)
    ]
    assert len(promised) == 8
    for name in promised:
        assert list(run_dir.glob(name)), f"README promises {name}"
    assert not list(run_dir.glob("*.new.*"))
    assert "<- the result" in capsys.readouterr().out


def test_network_of_ones_own_is_trained_as_written_on_images_of_ones_own(tmp_path, monkeypatch, capsys):
    code = code_with("compile_and_train")
    own = ROOT / "results" / "own" / "own.py"
    assert code == own.read_text("utf-8")  # what the run in results/ was made with
    sample = data.load_cifar10("sample")
    arrays = {"x_train": sample.x_train[:100], "y_train": sample.y_train[:100, None]}
    np.savez(tmp_path / "mine.npz", **arrays, x_test=sample.x_test[:40], y_test=sample.y_test[:40])
    monkeypatch.chdir(tmp_path)
    code = re.sub(r"epochs(\W+)\d+", r"epochs\g<1>1", code.replace('"sample"', '"mine.npz"', 1))
    exec(code, names := {})
    run_dir = names["run_dir"]
    assert names["network"].count_params() == json.loads((own.parent / "metrics.json").read_text())["parameters"]
    assert len(names["arrays"][0]) == 100
    assert names["history"]["epoch"] == [1]
    model = keras.models.load_model(run_dir / "model.keras")
    right = model.predict(sample.x_test[:40], verbose=0).argmax(axis=1) == sample.y_test[:40]
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["test_accuracy_end_of_training"] == pytest.approx(right.mean())
    assert f"{right.mean():.4f}  <- the result" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_picture_of_any_kind_is_classified_as_written(kind, tmp_path, monkeypatch, capsys):
    sample = data.load_cifar10("sample")
    colour = Image.fromarray(sample.x_test[8]).resize((90, 60))
    name = "photo.jpg" if kind in ("RGB", "L", "CMYK") else "photo.png"
    colour.convert(kind).save(tmp_path / name)
    code = code_with("photo.jpg").replace("photo.jpg", str(tmp_path / name))
    monkeypatch.chdir(ROOT)
    exec(code, names := {})
    printed = re.findall(r"(\w+) (\d+)%", capsys.readouterr().out)
    assert len(printed) == 3
    probabilities = names["probabilities"]
    assert probabilities.sum() == pytest.approx(1, abs=1e-4)
    assert [data.CLASS_NAMES.index(word) for word, _ in printed] == list(np.argsort(-probabilities)[:3])


def test_trained_network_is_as_good_as_its_run_says_and_loads_in_older_keras(tmp_path):
    path = ROOT / re.search(r'load_model\("(.+?)"\)', code_with("photo.jpg"))[1]
    assert path.stat().st_size < 10e6
    model, sample = keras.models.load_model(path), data.load_cifar10("sample")
    metrics = json.loads((path.parent / "metrics.json").read_text())
    accuracy = np.mean(model.predict(sample.x_test, verbose=0).argmax(axis=1) == sample.y_test)
    assert accuracy == pytest.approx(metrics["test_accuracy_end_of_training"], abs=0.03)
    # It was saved as a run saves its models, so that older versions of Keras load it.
    train.keep_model(shutil.copy(path, tmp_path / "new.keras"), tmp_path / "model.keras")
    before, after = (zipfile.ZipFile(file).read("config.json") for file in (path, tmp_path / "model.keras"))
    assert json.loads(before) == json.loads(after)


# ---------------------------------------------------------------- Links, numbers, flags


@pytest.mark.parametrize("name", ["README.md", "results/README.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text("utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            assert file.exists(), target
            if anchor:
                titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_tables_are_those_of_the_runs():
    tables = runpy.run_path(str(ROOT / "results" / "tables.py"))
    marks = re.findall(r"<!-- (\w+):begin -->", README) + re.findall(r"<!-- (\w+):begin -->", NOTEBOOK)
    assert sorted(marks) == sorted(tables["TABLES"])
    for text in (README, NOTEBOOK):
        assert tables["with_tables"](text) == text
        assert tables["with_tables"](text.replace("%", "")) != text  # that is, it does look


def test_each_result_is_of_the_official_data_or_the_sample_and_has_all_its_epochs():
    for metrics in (ROOT / "results").glob("**/metrics.json"):
        config = json.loads((metrics.parent / "config.json").read_text())
        assert config["data"]["official"] or config["data"]["sample"]
        epochs = (metrics.parent / "history.csv").read_text().count("\n") - 1
        assert epochs == config["epochs"]


def test_every_flag_in_the_readme_exists(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    existing = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    described = set(re.findall(r"`(?:python train.py[^`]*)?(--[a-z][a-z-]+)", README))
    assert {"--resume", "--holdout", "--dtype-policy", "--data"} <= described <= existing
