"""What is done with a learner beside training it: make one, describe it, time it, predict, export.
No method imports these."""
