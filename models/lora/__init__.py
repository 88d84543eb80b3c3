"""Methods that train low-rank corrections of a frozen backbone's linear layers.
One pair per task, or one for all."""
