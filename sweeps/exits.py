"""The statuses that a worker ends with, by which its crew knows why. Used by `sweeps.worker`, `sweeps.crew` and
`sweeps.cluster`."""

EXIT_DONE, EXIT_STOPPED, EXIT_DISK_FULL, EXIT_FENCED, EXIT_INTERRUPTED = 0, 3, 4, 75, 130
"""Nothing is left to do; too many failures in a row; no room on the disk; the lease was lost; told to leave."""
ORDERLY_EXITS = (EXIT_DONE, EXIT_STOPPED, EXIT_DISK_FULL, EXIT_INTERRUPTED)
"""Of a worker that is not to be replaced; any other is of one that died."""
