"""Methods that train the whole backbone without stored images: the bounds of every table, and regularisation.
No Gaussians either; those are in `models/slca`."""
