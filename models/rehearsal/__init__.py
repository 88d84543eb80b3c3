"""Methods that keep images of old classes, and the memory they share.
`memory.py` is their parent."""
