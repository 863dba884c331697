# written for commit 9b853c0
import math

import augment, data, train  # before Keras: they set it up
import keras
from keras import layers

keras.utils.set_random_seed(0)
images = data.load_cifar10("sample")  # or load_cifar10() for all of it, or "mine.npz"
arrays = train.training_and_validation(images)
settings = train.RECIPES["modern", "wrn"] | {"epochs": 15, "batch_size": 32}

stack = [keras.Input(data.IMAGE_SHAPE), layers.Conv2D(24, 2), layers.Activation("gelu")]
for filters in (64, 256, 256):
    for pooling in ([layers.MaxPooling2D(2)], []):
        stack += [layers.Conv2D(filters, 3, padding="same", use_bias=False), *pooling]
        stack += [layers.BatchNormalization(), layers.Activation("gelu")]
stack += [layers.GlobalMaxPooling2D(), layers.Rescaling(1 / 8), layers.Dense(10, activation="softmax")]
network = keras.Sequential(stack, name="own")

model = train.assemble(augment.standardiser(arrays[0], settings["scheme"]), network)
optimizer = train.make_optimizer(settings, math.ceil(len(arrays[0]) / settings["batch_size"]))
how = {name: settings[name] for name in ("scheme", "epochs", "batch_size", "label_smoothing")}
history, run_dir = train.compile_and_train(model, "own", *arrays, optimizer=optimizer, **how)
train.look(model, images.x_test, images.y_test, run_dir)
train.evaluate_performance(model, history, run_dir, images.x_test, images.y_test)
