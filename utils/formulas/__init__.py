"""Pure functions of numbers: accuracies and forgetting, losses, learning-rate schedules.
No state, no files, no config."""
