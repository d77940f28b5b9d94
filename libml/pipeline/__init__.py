"""Batches of images, made by tf.data and placed on the devices."""
