"""A check of changes that are made on a page: that the page is one of this service."""

from __future__ import annotations

from fastapi import Request

from serving.api import Problem


def check_same_site(request: Request, page: str) -> None:
    """Raise Problem (403) for a request that a browser marks as sent by a page of another site.

    A page on another site can make a browser post here. Without keys, nothing else would prevent that, and with origins
    in `cors_origins` the guard lets their pages write. page: the path of the page to use.
    """
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise Problem(
            403,
            "elsewhere",
            "Cross-site request",
            "the request was sent by another site's page (Sec-Fetch-Site)",
            f"Use the page at {page}, or an HTTP client other than a browser.",
        )
