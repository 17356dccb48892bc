"""The parts of a list while it is made: what is known of the user, what makes it, and the list before its answer."""
