"""From files to the network's input: decoding, keeping decoded images, loading in other processes, transforms.
Knows no classes and no tasks."""
