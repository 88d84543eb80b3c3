"""What `python main.py doctor` finds out without torch: the machine, the packages, weights and data sets, and what each would enable."""
