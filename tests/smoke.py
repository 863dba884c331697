"""Trains and resumes with the versions at hand, and loads what it and older versions have saved.

    python tests/smoke.py FOLDER

Run it in one environment after the other, the oldest versions first, with the same FOLDER. Each leaves there the models
of its run, and what these and the trained network in results/ say of the sample. The next must load them and say the
same: a model loads in the Keras that wrote it and in newer ones.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import data
import train

# isort: split
import keras
import numpy as np

folder = Path(sys.argv[1])
run_dir = folder / keras.__version__
images = data.load_cifar10("sample").x_test

# The tutorial's training with whitening: one epoch, then one more.
train.main(
    ["wrn", "--num-convs", "10", "--k-factor", "1", "--data", "sample", "--epochs", "1", "--resume", str(run_dir)]
)
train.main(["--resume", str(run_dir), "--epochs", "2"])
epochs = [line.split(",")[0] for line in (run_dir / "history.csv").read_text("utf-8").splitlines()]
assert epochs == ["epoch", "1", "2"], epochs

models = [*ROOT.glob("results/**/*.keras"), *sorted(folder.glob("*/*.keras"))]
assert len(models) >= 3, models  # the trained network, and the two of this run
for path in models:
    probabilities = keras.models.load_model(path).predict(images, verbose=0)
    recorded = folder / f"{'-'.join(path.parts[-2:])}.npy"
    if recorded.exists():
        difference = np.abs(probabilities - np.load(recorded)).max()
        print(f"Keras {keras.__version__}, {path}: largest difference {difference:.1e}")
        assert difference < 1e-4
    else:
        np.save(recorded, probabilities)
