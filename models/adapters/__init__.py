"""Methods that add adapters beside a frozen backbone's blocks.
One state per task or one for all."""
