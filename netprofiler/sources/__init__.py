"""Sources: batches of raw records from the kernel, a recording or a packet capture. The only part that needs a host."""
