"""`python main.py serve RUN`: a trained run behind HTTP, with a page that also collects images of new classes (docs/use_it.md)."""
