"""Containers: which one a process is in, what its engine says of it, which end of a connection is where.

cgroups.py       text of /proc/PID/cgroup → container id
engine.py        Docker's and Podman's API on a UNIX socket → Facts, and a stream of events
state_files.py   what containerd, CRI-O, Podman and Docker leave in files → Facts, without any API
directory.py     all of it together: `Containers`, with a thread for each engine; tables only for whoever asks
places.py        messages → the same, with the place of each end
selection.py     --container and its like, opt-in: which processes are watched
births.py        processes that begin another program, told at once by the kernel's connector
"""
