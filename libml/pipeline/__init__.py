"""Batches, made by tf.data and placed on the devices."""
