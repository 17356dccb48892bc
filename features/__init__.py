"""Point-in-time features of users, items and requests: arrays in, arrays out, no I/O and no clock."""
