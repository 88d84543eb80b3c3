"""What every part of the program may use, one room per subject: settings, errors, random streams and files here,
the rest in the folders. Imports none of `models`, `convs` and `trainer`."""
