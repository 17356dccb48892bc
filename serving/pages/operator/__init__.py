"""The operator's page: releases, what the gate said of them, how the service does; promote and roll back. Off unless
`serving.operator` is true, and behind a key for `admin`."""
