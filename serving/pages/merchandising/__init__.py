"""The page of merchandisers: lists of each placement for a chosen shopper, rules with start and end, and their history.
Off unless `serving.merchandising` is true; needs a key with scope `merchandise`, or `merchandise:read` to look on."""
