"""The API reference: a page of plain HTML, made from the OpenAPI document."""
