"""What the tutorial used, Keras's ImageDataGenerator: the oracle of the tests, and the rival in the benchmark."""

import tensorflow as tf

from augment import scheme_settings


def image_data_generator(scheme):
    """Return the tutorial's own object for `scheme`, a key of SCHEMES or a dict (needs SciPy to transform images).

    The tutorial used it like this:

        generator = image_data_generator(1)
        generator.fit(x_train)                                       # mean, and the whitening matrix: over a minute
        model.fit(generator.flow(x_train, get_onehot(y_train), batch_size=128), epochs=400)
    """
    return tf.keras.preprocessing.image.ImageDataGenerator(**scheme_settings(scheme))
