"""What is known of a user, an item and a request at a moment: arrays in, arrays out, no I/O and no clock."""
