"""What a run leaves on disk while it works: its folder, checkpoints, log and metrics, locks; and how it is stopped.
Every file is written under a temporary name and renamed."""
