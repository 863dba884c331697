"""How fast this code is beside the tutorial's ImageDataGenerator. Run by hand; pytest does not.

    python results/benchmark.py               whitening and input, on all of CIFAR-10: ten minutes on two cores
    python results/benchmark.py --training    training and evaluating the networks: a quarter of an hour

With --data sample --quick it only shows that it runs, with few images and steps and a smaller WRN.

It prints a table. Both contestants run by turns, several rounds after one that does not count, so that what else the
machine does hits both. A figure is the median of the rounds, with the lowest and the highest in brackets. "CPU" counts
the work of all threads. The ratios are between the medians; above 1 ours is the better one.
"""

import argparse
import datetime
import functools
import os
import platform
import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import augment  # first: it sets up Keras
import data
import svgg
import train
import wrn

# isort: split
import keras
import numpy as np
import tensorflow as tf

ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator
BATCH_SIZE = 128
SECONDS, RATE = "seconds", "images/s"

# ---------------------------------------------------------------- Measuring and printing


def alternate(contestants, rounds, warm_up=True):
    """Run each of `contestants` by turns, `rounds` times. Return {name: [(seconds, CPU seconds), …]} for one item.

    contestants: {name: function}; a function returns how many items (images, fits) it has worked on.
    """
    times = {name: [] for name in contestants}
    for number in range(-1 if warm_up else 0, rounds):  # round −1 builds graphs and fills caches
        for name, work in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            items = work()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if number >= 0:
                times[name].append(tuple(seconds / items for seconds in spent))
    return times


def median_of(times, column):
    return statistics.median(pair[column] for pair in times)


def describe(values):
    """Return "median (lowest–highest)" with three significant digits."""
    three = statistics.median(values), min(values), max(values)
    median, low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in three)
    return median if len(values) == 1 else f"{median} ({low}–{high})"


def print_row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_comparison(what, unit, times):
    """Print a row for each contestant of `alternate`, compared with ImageDataGenerator if that is one of them."""
    theirs = times.get("ImageDataGenerator")
    for name, spent in times.items():
        columns = zip(*spent, strict=True)  # seconds, CPU seconds
        cells = [describe(values if unit == SECONDS else [1 / value for value in values]) for values in columns]
        compared = theirs not in (None, spent)
        ratios = [f"{median_of(theirs, i) / median_of(spent, i):.1f}" if compared else "" for i in (0, 1)]
        print_row(what, name, unit, *cells, *ratios)


def print_head(source):
    """Print the machine, the versions and the head of the table."""
    try:
        processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):  # not Linux, or a processor that has no name there
        processor = platform.processor() or platform.machine()
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    print(f"{datetime.date.today()}, {processor}, {os.cpu_count()} cores{load}")
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}, NumPy {np.__version__}"
    print(f"Python {platform.python_version()}, {versions}; data: {source or 'CIFAR-10'}; batches of {BATCH_SIZE}\n")
    print_row("what", "contestant", "unit", "by the clock", "CPU", "ratio, clock", "ratio, CPU")
    print_row(*["---"] * 7)


# ---------------------------------------------------------------- Whitening and input


def fit_generator(images, scheme):
    generator = ImageDataGenerator(**augment.SCHEMES[scheme])
    generator.fit(images)
    return generator


def benchmark_fit(images):
    """Time the fit of the whitening. Return {scheme: (ImageDataGenerator, our layers)}, fitted, for schemes 1 to 3."""
    fitted = {}

    def by_generator():
        fitted["theirs"] = fit_generator(images, 1)
        return 1

    def by_us():
        fitted["ours"] = augment.standardiser(images, 1)
        return 1

    times = alternate({"ImageDataGenerator": by_generator, "ours": by_us}, rounds=1, warm_up=False)
    print_comparison(f"fit the whitening on {len(images):,} images (one round)", SECONDS, times)
    theirs, ours = fitted["theirs"], fitted["ours"]
    second = ImageDataGenerator(**augment.SCHEMES[2])  # it whitens as scheme 1 does, so that is not computed again
    second.mean, second.zca_whitening_matrix = theirs.mean, theirs.zca_whitening_matrix
    return {1: (theirs, ours), 2: (second, ours), 3: (fit_generator(images, 3), augment.standardiser(images, 3))}


def generator_input(generator, images, labels, steps):
    """Return a contestant: `steps` batches from the tutorial's generator, augmented and standardised in NumPy."""
    batches = generator.flow(images, data.get_onehot(labels), batch_size=BATCH_SIZE)
    return lambda: sum(len(next(batches)[0]) for _ in range(steps))


def pipeline_input(images, labels, scheme, steps, layers=None):
    """Return a contestant: `steps` of our training batches, standardised by `layers`, compiled as in the model."""
    batches = augment.training_batches(images, labels, scheme, BATCH_SIZE, seed=0).take(steps)
    standardise = tf.function(layers or tf.identity, reduce_retracing=True)
    return lambda: sum(len(standardise(batch).numpy()) for batch, _ in batches)


def benchmark_input(images, labels, rounds, steps):
    """Time the fit, and batches of each of the tutorial's schemes; then our pipeline by itself."""
    for scheme, (generator, layers) in benchmark_fit(images).items():
        contestants = {
            "ImageDataGenerator": generator_input(generator, images, labels, max(steps // 10, 1)),
            "ours": pipeline_input(images, labels, scheme, steps, layers),
        }
        times = alternate(contestants, rounds)
        print_comparison(f"batches of scheme {scheme}, augmented and standardised", RATE, times)
    # What the pipeline sustains by itself: its images a CPU second is what one core feeds to a GPU.
    contestants = {scheme: pipeline_input(images, labels, scheme, steps) for scheme in augment.SCHEMES}
    for scheme, times in alternate(contestants, rounds).items():
        print_comparison(f"batches of scheme {scheme}, augmented only", RATE, {"ours": times})


# ---------------------------------------------------------------- Training and evaluating


def compiled(model, kind):
    """Compile `model` with the tutorial's recipe for `kind`, "svgg" or "wrn", and return it."""
    optimizer = train.make_optimizer(train.RECIPES["tutorial", kind], steps_per_epoch=1)
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    return model


def fit(model, batches, steps):
    """Return a contestant: train `model` for `steps` steps."""

    def work():
        model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
        return steps * BATCH_SIZE

    return work


def benchmark_training(build, kind, images, labels, generator, layers, rounds, steps):
    """Train two copies of a network, with scheme 1, the input included. Return the one that our input has trained."""
    usable = len(images) // BATCH_SIZE * BATCH_SIZE  # full batches only, to compare like with like
    images, labels = images[:usable], labels[:usable]
    network, flow = build(), generator.flow(images, data.get_onehot(labels), BATCH_SIZE)
    batches = augment.training_batches(images, labels, 1, BATCH_SIZE, seed=0)
    contestants = {
        "ImageDataGenerator": fit(compiled(build(), kind), flow, steps),
        "input only": pipeline_input(images, labels, 1, 10 * steps, layers),  # more steps, since its start takes time
        "ours": fit(compiled(train.assemble(layers, network), kind), batches, steps),
    }
    times = alternate(contestants, rounds)
    # In CPU seconds: by the clock the input is made while the step before is computed.
    share = f"{100 * median_of(times.pop('input only'), 1) / median_of(times['ours'], 1):.1f} %"
    print_comparison(f"train {network.name} with scheme 1, input included", RATE, times)
    print_row(f"train {network.name}: share of input and whitening in our step", "ours", "", "", share, "", "")
    return network


def benchmark_evaluation(network, images, labels, generator, layers):
    """Evaluate the same network as the tutorial did, one image at a time through a generator, and as we do."""
    onehot, correct = data.get_onehot(labels), {}
    plain = ImageDataGenerator(featurewise_center=True, zca_whitening=True)  # as fitted, but it transforms nothing
    plain.mean, plain.zca_whitening_matrix = generator.mean, generator.zca_whitening_matrix
    flow = plain.flow(images, onehot, batch_size=1, shuffle=False)
    network, model = compiled(network, "wrn"), compiled(train.assemble(layers, network), "wrn")

    def through_generator():
        correct["theirs"] = round(network.evaluate(flow, verbose=0)[1] * len(images))
        return len(images)

    def batched():
        correct["ours"] = round(model.evaluate(images, onehot, 500, verbose=0)[1] * len(images))
        return len(images)

    network.evaluate(flow, steps=10, verbose=0)  # both compile now, since one image at a time is too slow to do twice
    model.evaluate(images[:10], onehot[:10], verbose=0)
    times = alternate({"ImageDataGenerator": through_generator, "ours": batched}, rounds=1, warm_up=False)
    what = f"evaluate {network.name} on {len(images):,} images"
    print_comparison(f"{what} (theirs in batches of 1; one round)", RATE, times)
    print_row(f"{what}: correct", "both", "images", *correct.values(), "", "")


def benchmark_networks(images, labels, x_test, y_test, rounds, quick):
    fitted_on = images[:10_000]  # how many images the whitening is fitted on makes no difference to the speed
    fitted = fit_generator(fitted_on, 1), augment.standardiser(fitted_on, 1)
    benchmark_training(svgg.build_svgg, "svgg", images, labels, *fitted, rounds, steps=1 if quick else 8)
    build = functools.partial(wrn.build_wrn, 10 if quick else 40, 2, drop_rate=0.3)
    network = benchmark_training(build, "wrn", images, labels, *fitted, rounds, steps=2 if quick else 20)
    benchmark_evaluation(network, x_test, y_test, *fitted)


def main(arguments=None):
    """Time what the options ask for, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description="Speed beside the tutorial's ImageDataGenerator.")
    parser.add_argument("--data", metavar="SOURCE", help="a folder, a tar archive, or sample (default: fetch CIFAR-10)")
    parser.add_argument("--training", action="store_true", help="only training and evaluating the networks")
    parser.add_argument("--quick", action="store_true", help="few images and steps, to see that it runs")
    options = parser.parse_args(arguments)
    keras.utils.set_random_seed(0)
    cifar10 = data.load_cifar10(options.data)
    images = np.concatenate([cifar10.x_train, cifar10.x_val])  # all 50,000, as the tutorial trains
    labels = np.concatenate([cifar10.y_train, cifar10.y_val])
    x_test, y_test, quick, rounds = cifar10.x_test, cifar10.y_test, options.quick, 1 if options.quick else 3
    if quick:
        images, labels, x_test, y_test = images[:300], labels[:300], x_test[:20], y_test[:20]

    print_head(options.data)
    if options.training:
        benchmark_networks(images, labels, x_test, y_test, rounds, quick)
    else:
        benchmark_input(images, labels, rounds, steps=2 if quick else 200)


if __name__ == "__main__":
    main()
