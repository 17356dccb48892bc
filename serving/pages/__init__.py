"""Web pages: the API reference; the storefront, to try out a release; the operator's page, to monitor the service and
change the live release; and the page of merchandisers. All but the first are off by default."""

from __future__ import annotations

from serving.pages.merchandising.page import MERCHANDISING_FORMS, add_merchandising
from serving.pages.operator.page import add_operator
from serving.pages.reference.page import add_reference
from serving.pages.storefront.page import add_storefront

__all__ = ["MERCHANDISING_FORMS", "add_merchandising", "add_operator", "add_reference", "add_storefront"]
