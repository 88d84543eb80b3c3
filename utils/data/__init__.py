"""From the name of a data set to batches with labels: registered and described sets, their readers, the stream of tasks.
What one image is, and how it is decoded and altered, is next door in `utils/images`."""
