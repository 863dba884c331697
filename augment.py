"""Step 2 of the tutorial: image augmentation and standardisation (centring, scaling, ZCA whitening).

    python augment.py                  draw 20 augmentations of one image, and what whitening does (fetches CIFAR-10)
    python augment.py --data sample    the same with the small slice that comes with the code

It ends with the names of the figures it has drawn:

    20 augmentations by scheme 1: figures/augmented_scheme1.png
    20 augmentations by scheme 2: figures/augmented_scheme2.png
    Whitening, before and after: figures/whitening.png

Random shifts, flips, rotations, shears and zooms make a larger training set out of a small one, and force the network
to learn features that survive them. Without augmentation, the tutorial reports, the Wide ResNet memorises the
training set — 100 % training accuracy — and generalises poorly. Validation and test images are never augmented, but
they must be standardised with the *training* set's statistics.

Different from the tutorial: it left both jobs to a Keras ImageDataGenerator, one image at a time in NumPy. Here they
are apart. Augmentation belongs to the training data: a tf.data pipeline transforms a batch at once, ahead of the
training step (`training_batches`). Standardisation belongs to the model: frozen layers at its front (`standardiser`),
so that a saved model takes raw pixels and plain `evaluate` and `predict` are right. The pixels are the same ones:
tests/test_augment.py compares them with ImageDataGenerator's, tests/benchmark.py the speed.

Shapes: B images in a batch, N in all, H = W = 32 pixels, C = 3 channels, D = H·W·C = 3072 numbers an image.
"""

import argparse
import os
from pathlib import Path

from data import CLASS_NAMES, DataError, load_cifar10  # first: it quietens TensorFlow

# isort: split
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

# ---------------------------------------------------------------- Augmentation schemes
#
# A scheme is a dict of ImageDataGenerator's own keyword arguments: ImageDataGenerator(**SCHEMES[1]) is the object that
# the tutorial used. Shift ranges below 1 are fractions of the image's side, rotation and shear are in degrees.

SCHEMES = {
    # The tutorial's first choice: large shifts and flips. 0.25 is ±8 pixels; the paper it quotes shifts by ±4.
    1: {
        "featurewise_center": True,
        "zca_whitening": True,
        "zca_epsilon": 1e-6,
        "width_shift_range": 0.25,
        "height_shift_range": 0.25,
        "fill_mode": "reflect",
        "horizontal_flip": True,
    },
    # Smaller shifts, but rotations, shears and zooms too. (The shear is in degrees: 0.2 is next to nothing.)
    2: {
        "featurewise_center": True,
        "zca_whitening": True,
        "zca_epsilon": 1e-6,
        "width_shift_range": 0.1,
        "height_shift_range": 0.1,
        "rotation_range": 15,
        "shear_range": 0.2,
        "zoom_range": 0.2,
        "fill_mode": "nearest",
        "horizontal_flip": True,
    },
    # Scheme 1 with mean and standard deviation in place of whitening, which is cheaper and does about as well.
    3: {
        "featurewise_center": True,
        "featurewise_std_normalization": True,
        "width_shift_range": 0.25,
        "height_shift_range": 0.25,
        "fill_mode": "reflect",
        "horizontal_flip": True,
    },
    # Scheme 3 with the paper's shift: whole pixels, at most 4. (An int k means −(k−1) … k−1, hence 5.) Whole pixels
    # keep the image sharp: a shift by half a pixel averages neighbours.
    4: {
        "featurewise_center": True,
        "featurewise_std_normalization": True,
        "width_shift_range": 5,
        "height_shift_range": 5,
        "fill_mode": "reflect",
        "horizontal_flip": True,
    },
}

_STANDARDISING = {"featurewise_center", "featurewise_std_normalization", "zca_whitening", "zca_epsilon"}
_TRANSFORMING = {
    "width_shift_range",
    "height_shift_range",
    "rotation_range",
    "shear_range",
    "zoom_range",
    "fill_mode",
    "horizontal_flip",
}


def scheme_settings(scheme):
    """Return the dict of keyword arguments for `scheme`: a key of SCHEMES, or such a dict itself.

    Raises ValueError for an unknown key, for an ImageDataGenerator argument that is not supported here, for a range
    that is not a number, and for a fill_mode other than "reflect" and "nearest".
    """
    if not isinstance(scheme, dict):
        if scheme not in SCHEMES:
            raise ValueError(f"scheme {scheme!r} does not exist; there are {', '.join(map(str, SCHEMES))}")
        return SCHEMES[scheme]
    if unknown := sorted(set(scheme) - _STANDARDISING - _TRANSFORMING):
        known = ", ".join(sorted(_STANDARDISING | _TRANSFORMING))
        raise ValueError(f"a scheme cannot have {', '.join(unknown)}; it may have {known}")
    for name in ("width_shift_range", "height_shift_range", "rotation_range", "shear_range", "zoom_range"):
        if not isinstance(scheme.get(name, 0), int | float):
            raise ValueError(f"{name} {scheme[name]!r} is not supported; a single number is")
    if scheme.get("fill_mode", "nearest") not in ("reflect", "nearest"):
        raise ValueError(f"fill_mode {scheme['fill_mode']!r} is not supported; use 'reflect' or 'nearest'")
    return scheme


def image_data_generator(scheme):
    """Return the tutorial's own object for `scheme`: a Keras ImageDataGenerator (needs SciPy to transform images).

    The tutorial used it like this:

        generator = image_data_generator(1)
        generator.fit(x_train)                                       # mean, and the whitening matrix: over a minute
        model.fit(generator.flow(x_train, get_onehot(y_train), batch_size=128), epochs=400)

    We do not, for three reasons. It is slow: one image at a time, a few hundred a second with whitening, where a GPU
    trains on tens of thousands. It is deprecated in Keras. And since the generator standardises, model.predict(x_test)
    on plain images is wrong without a warning. It stays as the oracle that the tests compare with.
    """
    return tf.keras.preprocessing.image.ImageDataGenerator(**scheme_settings(scheme))


# ---------------------------------------------------------------- One transformation of one image
#
# Rotation, shift, shear, zoom and flip are each a 3×3 matrix on coordinates (x, y, 1), x to the right and y downwards.
# Multiplied together they are one matrix, and the image needs resampling, which blurs, only once. A matrix says for
# each pixel of the output where in the input to look.


def affine_matrices(theta, tx, ty, shear, zx, zy, flip_horizontal, size):
    """Return the output-to-input matrices of a batch of transformations: float32 (B, 3, 3).

    Each argument but the last has shape (B,), with ImageDataGenerator's names and units: `theta` and `shear` in
    degrees, `tx` and `ty` shifts in pixels, `zx` and `zy` zoom factors (above 1: the image looks smaller),
    `flip_horizontal` true or false. `size` is the side of the square images in pixels.
    """
    theta, tx, ty, shear, zx, zy, flip = (
        tf.cast(value, tf.float64) for value in (theta, tx, ty, shear, zx, zy, flip_horizontal)
    )
    theta, shear = theta * np.pi / 180, shear * np.pi / 180
    zero, one = tf.zeros_like(theta), tf.ones_like(theta)

    def matrices(*rows):  # 6 arrays of shape (B,) -> (B, 3, 3)
        return tf.stack([tf.stack(row, axis=-1) for row in (*rows, (zero, zero, one))], axis=1)

    centre = (size / 2 - 0.5) * one
    to_centre = matrices((one, zero, centre), (zero, one, centre))
    from_centre = matrices((one, zero, -centre), (zero, one, -centre))
    rotate = matrices((tf.cos(theta), -tf.sin(theta), zero), (tf.sin(theta), tf.cos(theta), zero))
    shift = matrices((one, zero, tx), (zero, one, ty))
    shear_ = matrices((one, -tf.sin(shear), zero), (zero, tf.cos(shear), zero))
    zoom = matrices((zx, zero, zero), (zero, zy, zero))
    mirror = matrices((1 - 2 * flip, zero, (size - 1) * flip), (zero, one, zero))  # x -> size − 1 − x where flipped
    # To be read from right to left, from a pixel of the output to where it comes from: undo the flip, make the centre
    # the origin, zoom, shear, shift, rotate, and put the origin back into the corner.
    matrix = to_centre @ rotate @ shift @ shear_ @ zoom @ from_centre @ mirror
    return tf.cast(matrix, tf.float32)  # rounded once, at the end: a pixel is off by at most 0.002 of 255


def warp(images, matrices, fill_mode):
    """Resample each image by its own matrix, with bilinear interpolation: (B, H, W, C) -> float32 (B, H, W, C).

    matrices:  (B, 3, 3) from affine_matrices.
    fill_mode: what lies beyond the edges: "reflect" (d c b a | a b c d | d c b a) or "nearest" (a a a a | a b c d).
    """
    images = tf.cast(images, tf.float32)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.reshape(matrices, [-1, 9])[:, :8],  # the ninth number of such a matrix is always 1
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode=fill_mode.upper(),
    )


# ---------------------------------------------------------------- Random transformations of a batch


def _seed_pair(seed):
    """Return the two numbers that TensorFlow's stateless random functions want, from an int or from such a pair."""
    seed = tf.cast(seed, tf.int64)
    return seed if seed.shape.rank == 1 else tf.stack([seed, tf.zeros_like(seed)])


def draw_transforms(count, scheme, size, seed):
    """Draw `count` transformations as `scheme` says: a dict of affine_matrices' arguments, each of shape (count,).

    The distributions are ImageDataGenerator's. `size` is the side of the images in pixels. The draws depend on nothing
    but the arguments: the same `seed` (an int, or a pair of them) gives the same transformations.
    """
    settings = scheme_settings(scheme)
    seeds = iter(tf.unstack(tf.random.split(_seed_pair(seed), 9), num=9))  # at most 9 draws, each with one of its own

    def uniform(low, high):
        return tf.random.stateless_uniform([count], next(seeds), low, high)

    def sign():
        return tf.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)

    def shift(limit):  # in pixels
        if isinstance(limit, int):  # whole pixels: 0 … limit − 1 times ±1, so that 0 is twice as likely as any other
            return tf.floor(uniform(0.0, float(max(limit, 1)))) * sign()
        limit = limit * size if limit < 1 else limit
        return uniform(-limit, limit)

    angle, shear, zoom = (float(settings.get(key, 0)) for key in ("rotation_range", "shear_range", "zoom_range"))
    return {
        "theta": uniform(-angle, angle),
        # ImageDataGenerator takes the shift in x from height_shift_range, and the other way round.
        "tx": shift(settings.get("height_shift_range", 0)),
        "ty": shift(settings.get("width_shift_range", 0)),
        "shear": uniform(-shear, shear),
        "zx": uniform(1 - zoom, 1 + zoom),
        "zy": uniform(1 - zoom, 1 + zoom),
        "flip_horizontal": (uniform(0.0, 1.0) < 0.5) & settings.get("horizontal_flip", False),
    }


def random_transform(images, scheme, seed):
    """Return `images` (B, H, W, C), H = W, each transformed at random as `scheme` says: float32, still 0…255.

    Every image gets a transformation of its own. `seed` is an int (or a pair of ints); the same one, the same result.
    """
    count, size = tf.shape(images)[0], images.shape[1]
    matrices = affine_matrices(**draw_transforms(count, scheme, size, seed), size=size)
    return warp(images, matrices, scheme_settings(scheme).get("fill_mode", "nearest"))


# ---------------------------------------------------------------- The training batches


def training_batches(images, labels, scheme, batch_size, seed, first_epoch=0):
    """Return an endless tf.data.Dataset of training batches, epoch after epoch.

    images: uint8 (N, H, W, C); labels: whole numbers (N,); scheme: a key of SCHEMES or a dict; seed: an int.
    Each element is (float32 (B, H, W, C) of 0…255, transformed; float32 one-hot (B, 10)). An epoch has every image
    once, in ceil(N / batch_size) batches; its last batch is smaller where N / batch_size leaves a rest, as in the
    tutorial. Raises ValueError for an unknown scheme.

    The order of the images and their transformations in step s of epoch e depend on (seed, e, s) and on nothing that
    came before: training that goes on from `first_epoch` sees exactly what it would have seen uninterrupted.
    """
    scheme_settings(scheme)  # complain now, not when the first batch is drawn
    count = len(images)
    with tf.device("CPU:0"):  # the one copy of the data set that the pipeline holds, uint8, in the computer's memory
        images, labels = tf.constant(images), tf.constant(labels, tf.int32)

    def steps_of(epoch):  # an epoch as (epoch, step, which images): numbers only, so that nothing waits at its end
        order = tf.random.experimental.stateless_shuffle(tf.range(count), seed=tf.stack([seed, epoch]))
        steps = tf.data.Dataset.from_tensor_slices(order).batch(batch_size).enumerate()
        return steps.map(lambda step, chosen: (epoch, step, chosen))

    def make_batch(epoch, step, chosen):
        step_seed = tf.random.fold_in(tf.random.fold_in(_seed_pair(seed), epoch), step)
        batch = random_transform(tf.gather(images, chosen), scheme, step_seed)
        return batch, tf.one_hot(tf.gather(labels, chosen), len(CLASS_NAMES))

    seed = tf.constant(seed, tf.int64)
    epochs = tf.data.Dataset.counter(first_epoch)
    # AUTOTUNE: transform on all processor cores while the network trains, as many batches ahead as is worth it.
    return epochs.flat_map(steps_of).map(make_batch, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


# ---------------------------------------------------------------- Standardisation and ZCA whitening
#
# Neighbouring pixels repeat each other. ZCA whitening is the linear map that removes all correlation from the training
# images, gives every direction the variance 1, and of all such maps stays closest to the original image (it is PCA
# whitening, rotated back); edges stand out. Its price is a matrix of 3072×3072 numbers, 38 MB. The WRN paper used it
# for some results; its authors later found the mean and standard deviation of each channel to do better.


def channel_statistics(images):
    """Return the mean and standard deviation of each channel of uint8 `images` (N, H, W, C): two float64 (C,).

    A byte has 256 values; counting how often each occurs gives both without a copy of the images, and without the
    rounding of summing 50 million float32 numbers.
    """
    values = np.arange(256.0)
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(images.shape[-1])]
    shares = np.stack(counts) / counts[0].sum()  # (C, 256)
    mean = shares @ values
    return mean, np.sqrt(((values - mean[:, None]) ** 2 * shares).sum(axis=1))


def zca_matrix(images, mean, epsilon):
    """Return the ZCA whitening matrix, float64 (D, D), of uint8 `images` (N, H, W, C) after images − mean.

    mean: (C,), per channel. As in ImageDataGenerator: let S[p, q] be the mean over the images of x_p · x_q, a
    covariance matrix but for being centred per channel, not per pixel; U its eigenvectors, v its eigenvalues. Then

        W = U · diag(1 / (sqrt(v) + epsilon / sqrt(N))) · Uᵀ

    W is symmetric, and W·S·W is the identity: whitened pixels are uncorrelated.

    Directions in which the images do not vary at all have v = 0. There are some with fewer images than pixels, with
    pixels that never change, with images that repeat. What is computed for them is rounding noise, and dividing by it
    would ruin every image that was not in `images` (as it does in ImageDataGenerator, but for the first case). They are
    left out: the whitened image has nothing there.
    """
    rows = images.reshape(len(images), -1)  # (N, H, W, C) -> (N, D)
    count, size = rows.shape
    products, totals = np.zeros((size, size)), np.zeros(size)
    # Sums of 50,000 products would lose digits in float32, and take four times as long in float64. But pixels are whole
    # numbers: shifted to −128…127, the sum of 1,024 products is at most 2^24 and so is exact in float32.
    for start in range(0, count, 1024):
        block = rows[start : start + 1024].astype(np.float32) - 128
        products += block.T @ block
        totals += block.sum(axis=0, dtype=np.float64)
    # The mean of (p − a)(q − b) is the mean of pq, minus b·(mean of p), minus a·(mean of q), plus ab.
    offset = np.tile(mean - 128, size // len(mean))  # (C,) -> (D,)
    cross = np.outer(totals / count, offset)
    second_moments = products / count - cross - cross.T + np.outer(offset, offset)

    variances, directions = np.linalg.eigh(second_moments)
    # What is below the rounding noise of this sum, whose terms reach 128², or of the largest variance, counts as none.
    varying = variances > max(variances.max(), 128**2) * size * np.finfo(float).eps
    directions, deviations = directions[:, varying], np.sqrt(variances[varying])
    return (directions / (deviations + epsilon / np.sqrt(count))) @ directions.T


def standardiser(images, scheme):
    """Return frozen Keras layers, fitted on `images`, that centre, scale or whiten as `scheme` says: keras.Sequential.

    images: uint8 (N, H, W, C) of any size, the training images. The layers take raw pixels (B, H, W, C), 0…255, and
    return float32 of the same shape. They stand at the front of a model, hold nothing to train, need no code of ours
    when the model is loaded elsewhere, and stay float32 when the rest computes in float16.
    Raises ValueError for an unknown scheme or images that are not uint8.
    """
    settings = scheme_settings(scheme)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"standardiser needs uint8 images (N, H, W, C), got {images.dtype} {images.shape}")
    whitens = settings.get("zca_whitening")
    scales = settings.get("featurewise_std_normalization") and not whitens  # as in ImageDataGenerator: either, or
    mean, std = channel_statistics(images)
    std = std + 1e-6 if scales else np.ones_like(std)
    if not (settings.get("featurewise_center") or scales or whitens):  # scaling and whitening imply centring
        mean = np.zeros_like(mean)

    # Normalization computes (x − mean) / sqrt(variance). Mean and variance are the channels'; repeated for every
    # pixel they give the same numbers in a third of the time: TensorFlow itself is slow at repeating rows of three.
    mean_image, variance_image = (np.broadcast_to(values, images.shape[1:]) for values in (mean, std**2))
    centre = layers.Normalization((1, 2, 3), mean=mean_image, variance=variance_image, dtype="float32")
    stack = [keras.Input(images.shape[1:]), centre]
    if whitens:  # (B, H, W, C) -> (B, D) -> (B, D) -> (B, H, W, C)
        matrix = zca_matrix(images, mean, settings.get("zca_epsilon", 1e-6))
        whiten = layers.Dense(len(matrix), use_bias=False, name="zca_whitening", dtype="float32")
        stack += [layers.Flatten(dtype="float32"), whiten, layers.Reshape(images.shape[1:], dtype="float32")]
    model = keras.Sequential(stack, name="standardiser")
    if whitens:
        whiten.set_weights([matrix])
    model.trainable = False
    return model


# ---------------------------------------------------------------- Looking at the augmented images


def _plot_grid(images, path, columns):
    figure = Figure(figsize=(1.5 * columns, 1.5 * len(images) / columns))
    for axis, image in zip(figure.subplots(len(images) // columns, columns).ravel(), images, strict=True):
        axis.imshow(image)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path)


def plot_augmentations(image, scheme, path, seed=0):
    """Write a figure of 20 random transformations of one uint8 image (H, W, C) to `path`, unwhitened, to be seen."""
    augmented = random_transform(np.stack([image] * 20), scheme, seed).numpy()
    _plot_grid(np.clip(np.rint(augmented), 0, 255).astype(np.uint8), path, columns=5)


def plot_whitening(images, standardise, path):
    """Write a figure of uint8 `images` (N, H, W, C), above, and what `standardise` makes of each, below, to `path`."""
    whitened = np.asarray(standardise(images))
    low, high = (function(whitened, axis=(1, 2, 3), keepdims=True) for function in (np.min, np.max))
    _plot_grid([*(images / 255), *((whitened - low) / (high - low))], path, columns=len(images))


def main(arguments=None):
    """Draw the augmented and the whitened images: the command line of this step."""
    parser = argparse.ArgumentParser(description="Step 2: augmented and whitened images.")
    parser.add_argument("--data", metavar="SOURCE", help="a folder, a tar archive, or sample (default: fetch CIFAR-10)")
    parser.add_argument("--out", default="figures", metavar="DIR", help="folder for the figures (default: figures)")
    options = parser.parse_args(arguments)
    try:
        os.makedirs(options.out, exist_ok=True)
        data = load_cifar10(options.data)
    except (DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    for scheme in (1, 2):
        path = Path(options.out, f"augmented_scheme{scheme}.png")
        plot_augmentations(data.x_train[4], scheme, path)
        print(f"20 augmentations by scheme {scheme}: {path}")
    path = Path(options.out, "whitening.png")
    plot_whitening(data.x_train[:8], standardiser(data.x_train, 1), path)
    print(f"Whitening, before and after: {path}")


if __name__ == "__main__":
    main()
