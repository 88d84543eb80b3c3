"""Methods that leave the backbone as it is and learn prompts for it.
`prompting.py` is their parent."""
