"""The operator's page: service metrics, releases and their gate verdicts, promotion and rollback. Off unless
`serving.operator` is true; needs a key with scope `admin`."""
