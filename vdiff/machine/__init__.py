"""The machine a run has: devices, processes, memory, precision."""
