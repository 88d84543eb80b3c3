"""What a run needs to know of the machine: devices, processes, reproducible kernels, versions, memory that ran out.
All of it works with one process on a CPU too."""
