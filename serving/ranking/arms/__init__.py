"""Arms of experiments: their releases, what they change in each release, and lists that mix two of them."""
