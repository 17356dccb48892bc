"""Pages: the storefront to try a release with, and the operator's page to watch and change it. Both are off by
default."""

from __future__ import annotations

from serving.pages.operator.page import add_operator
from serving.pages.storefront.page import add_storefront

__all__ = ["add_operator", "add_storefront"]
