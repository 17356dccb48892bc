"""The pipeline that makes a release, and judges it."""
