"""What `python main.py analyze` measures (models/tools/analyze.py puts it together): a state of the backbone and what the features
know in it, how far it moved, where the classifier leans, which classes are lost, and a map."""
