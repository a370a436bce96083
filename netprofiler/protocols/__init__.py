"""Protocols: bytes in, message parts out. No I/O, no clock, no exception for malformed traffic."""
