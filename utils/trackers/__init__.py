"""TensorBoard and Weights & Biases as subscribers of a run's events (utils/run/events.py). Their packages are imported when asked for."""
