"""The device mesh, the processes of a run, and its compiled functions."""
