"""What a run needs around the method: files, checkpoints, processes, settings, and what ends a run early."""
