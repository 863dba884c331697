"""README.md keeps its word: commands and code work, links lead somewhere, numbers are those of the runs."""

import functools
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import data
import train

ROOT = Path(__file__).parent.parent
README, NOTEBOOK = (ROOT / "README.md").read_text("utf-8"), (ROOT / "results" / "README.md").read_text("utf-8")
COMMANDS = sorted(set(re.findall(r"(?:^|[`/!])(python [\w/]+\.py[^`\n&#]*)", README, re.MULTILINE)))
STEPS = [pytest.param(x, marks=[pytest.mark.long] * ("augment" in x)) for x in COMMANDS if "train.py" not in x]
CODE = re.findall(r"^```py\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def settings_of(command):
    typed = vars(train.make_parser().parse_args(shlex.split(command)[2:]))
    return train.make_settings({name: value for name, value in typed.items() if value is not None})


def score(run):
    return 100 * json.loads((ROOT / "results" / run / "metrics.json").read_text())["test_accuracy_end_of_training"]


def code_with(text):
    return next(block for block in CODE if text in block)


def test_readme_is_short_and_shows_the_first_command_early():
    lines = README.splitlines()
    assert len(lines) <= 190
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|") and "](" not in line]
    assert "python train.py" in "\n".join(lines[:15])


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search("train.py [sw]", command)])
def test_training_command_is_accepted(command):
    assert settings_of(command)["network"] in command


def test_each_exercise_changes_one_setting():
    command, last = re.search(r"`(python train.py [^`]*)`", section("Exercises"))[1], ""
    for line in re.findall(r"^\d\. (.*)$", section("Exercises"), re.MULTILINE):
        first, *more = re.findall("`(--[^`]+)`", line)
        one, last = (first, f"{first} {more[0]}") if more else (last, f"{last} {first}")  # "With all flags of …"
        one, two = settings_of(f"{command} {one}"), settings_of(f"{command} {last}")
        assert len([name for name in one if one[name] != two[name]]) == 1, line


@pytest.mark.parametrize("command", STEPS)
def test_step_runs_as_written(command, tmp_path, monkeypatch, capsys):
    _, script, *arguments = shlex.split(command)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    module = runpy.run_path(str(ROOT / script), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(line in printed for line in re.findall(r"^    (.*params: .*)$", module["__doc__"], re.MULTILINE))
    assert all((tmp_path / path).stat().st_size > 1000 for path in re.findall(r"figures/\S+\.png", printed))
    assert "figures/" in printed or "No graph drawn" in printed


def test_lessons_end_where_the_table_says():
    for name in ("data.py", "augment.py", "train.py"):
        number = int(re.search(rf"\[{name}\].*until line (\d+)", README)[1])
        line = (ROOT / name).read_text("utf-8").splitlines()[number - 1]
        assert re.match(r"# -+ (The lesson ends|Recording a run)", line), f"{name}, line {number}: {line}"


@pytest.mark.long
def test_one_epoch_of_the_quick_start_makes_every_promised_file(tmp_path, capsys):
    command = next(command for command in COMMANDS if "--batch-size 32" in command)
    train.main([*shlex.split(command)[2:], "--epochs", "1", "--out", str(tmp_path)])
    run_dir = next(tmp_path.glob("*/*"))
    promised = re.findall("`(.+?)`", "".join(re.findall(r"^\| (`.*?) \|", section("What a run leaves"), re.MULTILINE)))
    assert [bool(list(run_dir.glob(name))) for name in promised] == [True] * 8
    assert not list(run_dir.glob("*new*"))
    assert "<- the result" in capsys.readouterr().out


def test_network_of_ones_own_is_trained_as_written_on_images_of_ones_own(tmp_path, monkeypatch, capsys):
    x, y, *_, x_test, y_test = data.load_cifar10("sample")
    np.savez(tmp_path / "mine.npz", x_train=x[:100], y_train=y[:100, None], x_test=x_test[:40], y_test=y_test[:40])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "savefig", lambda *_: None)  # it takes longer than the training
    code = code_with("compile_and_train").replace('"sample"', '"mine.npz"', 1).replace('"epochs": 15', '"epochs": 1')
    exec(code, names := {})
    assert f"| {names['network'].count_params():,} | modern, 20 epochs" in README
    model = keras.models.load_model(names["run_dir"] / "model.keras")
    right = model.predict(x_test[:40], verbose=0).argmax(axis=1) == y_test[:40]
    assert f"{right.mean():.4f}  <- the result" in capsys.readouterr().out


def test_photo_is_classified_as_written_however_the_camera_was_held(tmp_path, monkeypatch, capsys):
    upright = Image.fromarray(data.load_cifar10("sample").x_test[8]).resize((96, 64), Image.Resampling.BICUBIC)
    # How the camera stores the photo: what has to be done to show it upright, undone.
    stored = "None FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270"
    (transparent := upright.copy()).putalpha(128)
    for name, photo in {"upright": upright, "grey": upright.convert("L"), "transparent": transparent}.items():
        photo.save(tmp_path / f"{name}.png")
    for orientation, method in enumerate(stored.split(), 1):
        photo = upright.transpose(Image.Transpose[method]) if method != "None" else upright
        (exif := Image.Exif())[0x0112] = orientation
        photo.save(tmp_path / f"{orientation}.jpg", quality=100, subsampling=0, exif=exif)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(keras.models, "load_model", functools.cache(keras.models.load_model))
    probabilities = {}
    for path in tmp_path.iterdir():
        exec(code_with("photo.jpg").replace("photo.jpg", str(path)), names := {})
        probabilities[path.name] = names["probabilities"]
        answer = re.findall(r"(\w+) \d+%", capsys.readouterr().out)
        assert answer == [data.CLASS_NAMES[i] for i in np.argsort(-names["probabilities"])[:3]]
    for name, values in probabilities.items():
        assert values.argmax() == probabilities["upright.png"].argmax() == 8, name
        assert name == "grey.png" or np.abs(values - probabilities["upright.png"]).max() < 0.05, name


def test_trained_network_is_as_good_as_its_run_says():
    path = ROOT / re.search(r'load_model\("(.+?)"\)', code_with("photo.jpg"))[1]
    sample = data.load_cifar10("sample")
    right = keras.models.load_model(path).predict(sample.x_test, verbose=0).argmax(axis=1) == sample.y_test
    assert 100 * right.mean() == pytest.approx(score("networks/own_modern_36epochs_cutout"), abs=3)


@pytest.mark.parametrize("name", ["README.md", "results/README.md"])
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text("utf-8")):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            assert file.exists(), target
            titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE) if anchor else []
            assert anchor in ["", *(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)]


def test_tables_are_those_of_the_runs():
    tables = runpy.run_path(str(ROOT / "results" / "tables.py"))
    with pytest.raises(SystemExit, match=r"^0$"):
        tables["main"](["--check"])
    for text in ("| modern, `scheme=5`, 36 epochs | **94.2 %** |", "| 2,268,394 | tutorial, 20 epochs | **77.9 %** |"):
        assert text in section("Results")
    assert "| 76.1 | +5.5 |" in NOTEBOOK
    assert "| 75.8 | −0.3 |" in NOTEBOOK


def test_numbers_in_sentences_are_those_of_the_runs():
    names = ("own_modern_20epochs", "own_modern_36epochs_cutout", "wrn-16-2-full-resolution_modern_30epochs")
    names += ("svgg_modern_28epochs_cutout",)
    two = [score(f"networks/{name}{seed}") for name in names for seed in ("", "_seed1")]
    assert re.findall(r"\d\d\.\d\d", section("Results")) == [f"{number:.2f}" for number in two]
    assert re.findall(r"\d\d\.\d", README.split("```")[0]) == [f"{number:.1f}" for number in two[2:6]]
    assert f'`"scheme": 5` bring it to {two[2]:.1f} %' in section("Train a network of your own")
    assert re.findall(r"\d\d\.\d", section("What you see")) == [f"{score('quickstart'):.1f}"]
    assert f"{score('quickstart') / 100:.4f}  <- the result" in section("What you see")
    own = re.search(r"\[(.*) %\]\(results/own\), (\d+) points more", README)
    assert own.groups() == (f"{score('own'):.1f}", f"{score('own') - score('quickstart'):.0f}")


def test_every_flag_in_the_readme_exists():
    described = set(re.findall(r"`(?:python train.py[^`]*)?(--[a-z][a-z-]+)", README))
    assert {"--resume", "--holdout", "--dtype-policy", "--data"} <= described
    assert described <= set(re.findall(r"--[a-z][a-z-]+", train.make_parser().format_help()))
